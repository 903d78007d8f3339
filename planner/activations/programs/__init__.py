"""What the layers of each implementation do, written as their own forward functions read."""

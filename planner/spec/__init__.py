"""Files to frozen values: what the user says, checked, with every fault at its line."""

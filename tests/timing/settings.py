"""Settings that several tests share."""

from functools import cache
from pathlib import Path

from planner.model.load import load_model
from planner.spec.cluster import Cluster
from planner.spec.deepspeed import DeepSpeed, Pipeline
from planner.spec.devices import device
from planner.spec.training import Training
from planner.timing.shapes import Setting

A100 = device("a100-sxm-80gb")


def cluster(nodes=4, *, per_node=8, network="infiniband-hdr", ports=None):
    return Cluster(
        nodes=nodes,
        devices_per_node=per_node,
        device=A100,
        intra_node_link="nvlink3",
        inter_node_link=network,
        network_ports=ports,
    )


@cache
def model(name="llama-3-8b"):
    return load_model(name, folder=Path())


@cache
def gpt(layers, hidden, heads, vocabulary=51200, length=2048):
    keys = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": layers,
        "n_embd": hidden,
        "n_head": heads,
        "n_positions": length,
        "vocab_size": vocabulary,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    }
    return load_model(keys, folder=Path())


def setting(of=None, *, machines=None, length=2048, attention="eager", **changes):
    training = {"precision": "fp16", "implementation": "megatron", "attention": attention}
    parts = {
        "model": of or gpt(8, 1024, 16),
        "cluster": machines or cluster(),
        "training": Training(sequence_length=length, **training),
        "deepspeed": DeepSpeed(pipeline=Pipeline(partition_method="type:block")),
    }
    return Setting(**(parts | changes))

"""The layout against DeepSpeed's own classes: topology, groups, pipeline partition and schedule."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from planner.layout import ranks
from planner.layout.cut import stages
from planner.layout.partition import partition_balanced, partition_uniform
from planner.layout.schedule import num_pipe_buffers, steps
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training
from tests.real.harness import run_ranks

pytestmark = pytest.mark.real
pytest.importorskip("deepspeed")

ACTIONS = {
    "SendGrad": "send_gradient",
    "RecvActivation": "receive_activation",
    "RecvGrad": "receive_gradient",
    "SendActivation": "send_activation",
    "LoadMicroBatch": "load",
    "ForwardPass": "forward",
    "BackwardPass": "backward",
    "ReduceTiedGrads": "reduce_tied",
    "ReduceGrads": "reduce",
    "OptimizerStep": "step",
}


@pytest.mark.parametrize(("pp", "dp", "tp"), list(product((1, 2, 3), (1, 2, 4), (1, 2, 4))))
def test_coordinates_and_groups_are_those_of_the_pipeline_topology(pp, dp, tp):
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    topology = PipeModelDataParallelTopology(num_pp=pp, num_mp=tp, num_dp=dp)
    layout = Layout(dp=dp, tp=tp, pp=pp)
    for rank in range(topology.world_size()):
        theirs = topology.get_coord(rank)
        ours = ranks.coordinates(rank, layout)
        assert (ours.pp, ours.dp, ours.tp) == (theirs.pipe, theirs.data, theirs.model)
        for axis, name in (("pp", "pipe"), ("dp", "data"), ("tp", "model")):
            lists = [tuple(group) for group in topology.get_axis_comm_lists(name)]
            assert ranks.axis_group(rank, axis, layout) in lists
        assert ranks.zero_group(rank, layout) == ranks.axis_group(rank, "dp", layout)


class Processes:
    """Stands in for ``deepspeed.comm`` on one rank; a process group is the tuple of its ranks."""

    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size

    def is_initialized(self):
        return True

    def get_rank(self, group=None):
        return self.rank if group is None else group.index(self.rank)

    def get_world_size(self, group=None):
        return self.world_size if group is None else len(group)

    def new_group(self, members):
        return tuple(members)


@pytest.fixture
def groups(monkeypatch):
    """DeepSpeed's groups module, fresh, as the given rank of a world sees it."""
    from deepspeed.utils import groups

    def enter(rank, world_size):
        groups._release_process_group_references()
        monkeypatch.setattr(groups, "dist", Processes(rank, world_size))
        monkeypatch.setattr(groups, "log_dist", lambda *_, **__: None)
        return groups

    yield enter
    groups._release_process_group_references()


@pytest.mark.parametrize(("dp", "tp"), [(1, 4), (4, 2), (3, 3)])
def test_autotp_takes_consecutive_ranks(groups, dp, tp):
    layout = Layout(dp=dp, tp=tp)
    for rank in range(layout.num_devices):
        module = groups(rank, layout.num_devices)
        data, _ = module._init_tp_groups_with_new_group(tp)
        tensor = module.get_tensor_model_parallel_group()
        assert data == ranks.zero_group(rank, layout)
        assert tensor == ranks.axis_group(rank, "tp", layout)


@pytest.mark.parametrize(
    ("dp", "pp", "ep"), [(8, 1, 4), (4, 2, 2), (6, 2, 3), (4, 1, 4), (4, 1, 1)]
)
def test_experts_of_the_native_layer(groups, dp, pp, ep):
    layout = Layout(dp=dp, pp=pp, ep=ep)
    for rank in range(layout.num_devices):
        module = groups(rank, layout.num_devices)
        module._create_expert_and_data_parallel(ep, pp_size=pp)
        for grouping in ("lane", "stage"):
            ours = ranks.expert_group(rank, layout, grouping)
            assert ours == module._get_expert_parallel_group(f"ep_size_{ep}")
            ours = ranks.expert_zero_group(rank, layout, grouping)
            assert ours == module._get_expert_data_parallel_group(f"ep_size_{ep}")


@pytest.mark.parametrize(("dp", "tp", "pp", "ep"), [(8, 2, 1, 4), (4, 2, 2, 2), (4, 4, 3, 4)])
def test_experts_that_tensor_parallelism_cuts(groups, dp, tp, pp, ep):
    layout = Layout(dp=dp, tp=tp, pp=pp, ep=ep)
    module = groups(0, layout.num_devices)
    lists, state_lists = module._get_expert_parallel_ranks(layout.num_devices, tp, ep, pp)
    for rank in range(layout.num_devices):
        assert list(ranks.expert_group(rank, layout, "lane")) in [list(group) for group in lists]
        assert list(ranks.expert_zero_group(rank, layout, "lane")) in state_lists


@pytest.mark.parametrize(("dp", "tp", "ep"), [(4, 2, 2), (4, 2, 8), (2, 4, 4)])
def test_experts_of_autoep_folded_with_autotp(dp, tp, ep):
    from deepspeed.module_inject.auto_ep_folding import build_folding_spec, local_folding_ranks

    # `Layout` asks ep to divide dp, AutoEP only dp * tp; the groups are the same formula.
    layout = Layout(dp=dp, tp=tp, ep=ep)
    spec = build_folding_spec(world_size=dp * tp, pp_size=1, tp_size=tp, ep_size=ep)
    for rank in range(dp * tp):
        theirs = local_folding_ranks(rank, spec)
        assert ranks.expert_group(rank, layout, "stage") == theirs["ep"]
        assert ranks.expert_zero_group(rank, layout, "stage") == theirs["edp"]
        assert ranks.zero_group(rank, layout) == theirs["dense_dp"]
        assert ranks.axis_group(rank, "tp", layout) == theirs["tp"]
        assert ranks.expert_zero_degree(layout, "stage") == spec.edp_size


@pytest.mark.parametrize(("dp", "sp"), [(1, 4), (4, 2), (2, 3)])
def test_ulysses_takes_consecutive_ranks_and_zero_all_of_them(monkeypatch, dp, sp):
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    layout = Layout(dp=dp, sp=sp)
    for rank in range(layout.num_devices):
        parallel_state_sp._release_sequence_parallel_groups()
        monkeypatch.setattr(parallel_state_sp, "dist", Processes(rank, layout.num_devices))
        parallel_state_sp.initialize_sequence_parallel(sp)
        assert parallel_state_sp.get_sequence_parallel_group() == ranks.axis_group(
            rank, "sp", layout
        )
        assert parallel_state_sp.get_sequence_data_parallel_group() == ranks.zero_group(
            rank, layout
        )
    parallel_state_sp._release_sequence_parallel_groups()


def test_secondary_partitions_take_consecutive_ranks(groups):
    for rank in range(8):
        module = groups(rank, 8)
        module._create_zero_param_parallel_group(4)
        assert module._get_zero_param_intra_parallel_group() == ranks.secondary_group(rank, 4)


def test_pipeline_partitions_are_deepspeeds_own():
    from deepspeed.runtime import utils

    chance = np.random.default_rng(8)
    for _ in range(3000):
        num_parts = int(chance.integers(1, 11))
        highest = int(chance.choice([1, 2, 5, 1000, 10**10]))
        weights = chance.integers(0, highest + 1, chance.integers(1, 23)).tolist()
        theirs = [int(bound) for bound in utils.partition_balanced(weights, num_parts)]
        assert list(partition_balanced(tuple(weights), num_parts)) == theirs, (weights, num_parts)
        uniform = [int(bound) for bound in utils.partition_uniform(len(weights), num_parts)]
        assert list(partition_uniform(len(weights), num_parts)) == uniform


def test_a_large_models_partition_is_deepspeeds_own():
    from deepspeed.runtime import utils

    weights = [1_245_708_288, *[877_685_760] * 80, 8192, 1_245_708_288]
    for num_stages in (2, 4, 8, 16):
        theirs = [int(bound) for bound in utils.partition_balanced(weights, num_stages)]
        assert list(partition_balanced(tuple(weights), num_stages)) == theirs


@pytest.mark.parametrize("num_stages", range(1, 9))
def test_every_instruction_is_the_train_schedules(num_stages):
    from deepspeed.runtime.pipe.schedule import TrainSchedule

    for micro_batches, stage in product(range(1, 20), range(num_stages)):
        schedule = TrainSchedule(micro_batches, num_stages, stage)
        theirs = [
            [(ACTIONS[command.name], getattr(command, "buffer_id", -1)) for command in group]
            for group in schedule.steps()
        ]
        ours = [
            [(instruction.action, instruction.buffer) for instruction in group]
            for group in steps(stage, num_stages, micro_batches)
        ]
        assert ours == theirs
        assert num_pipe_buffers(stage, num_stages, micro_batches) == schedule.num_pipe_buffers()


SIZES = {
    "hidden_size": 96,
    "intermediate_size": 202,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "vocab_size": 101,
}
GROUPED = SIZES | {"num_key_value_heads": 3, "head_dim": 16}
LATENT = SIZES | {
    "num_key_value_heads": 6,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
CUT_BY_TP = [
    {"model_type": "llama", **GROUPED, "tie_word_embeddings": False},
    {"model_type": "llama", **GROUPED, "tie_word_embeddings": True},
    {"model_type": "mistral", **GROUPED},
    {"model_type": "qwen2", **SIZES, "num_key_value_heads": 3, "tie_word_embeddings": True},
    {"model_type": "qwen3", **GROUPED},
    {"model_type": "gemma", **GROUPED},
    {"model_type": "gemma2", **GROUPED},
    {"model_type": "gemma3_text", **GROUPED},
    {"model_type": "starcoder2", **SIZES, "num_key_value_heads": 3},
    {"model_type": "phi", **SIZES, "num_key_value_heads": 3},
    {"model_type": "gpt_neox", **SIZES},
    {"model_type": "opt", **SIZES, "ffn_dim": 204, "word_embed_proj_dim": 96},
    {"model_type": "bloom", "hidden_size": 96, "n_layer": 2, "n_head": 6, "vocab_size": 101},
    {"model_type": "falcon", **SIZES},
    {"model_type": "gpt_oss", **GROUPED, "num_local_experts": 4},
]
CUT_BY_EP = [{"model_type": family, **LATENT} for family in ("deepseek_v2", "deepseek_v3")]


@pytest.fixture(scope="module")
def cut_models():
    """Names and sizes that DeepSpeed leaves of each model, by rank of two."""
    runs = [{"model": m, "config": {"tensor_parallel": {"autotp_size": 2}}} for m in CUT_BY_TP]
    runs += [
        {
            "model": m,
            "config": {
                "expert_parallel": {
                    "enabled": True,
                    "autoep_size": 2,
                    "preset_model": m["model_type"],
                }
            },
        }
        for m in CUT_BY_EP
    ]
    worker = Path(__file__).with_name("worker_cut.py")
    return run_ranks(worker, {"world_size": 2, "runs": runs}, ranks=2)


@pytest.mark.parametrize("place", range(len(CUT_BY_TP) + len(CUT_BY_EP)))
def test_a_ranks_parameters_are_those_that_deepspeed_leaves_it(cut_models, place):
    from transformers import AutoConfig

    keys = (CUT_BY_TP + CUT_BY_EP)[place]
    config = AutoConfig.for_model(**keys).to_dict() | {"architectures": None}
    model = load_model(config, folder=Path())
    layout = Layout(dp=1, tp=2) if place < len(CUT_BY_TP) else Layout(dp=2, ep=2)
    for rank, outcome in enumerate(cut_models):
        tp_rank = ranks.coordinates(rank, layout).tp
        (stage,) = stages(model, layout, Training(sequence_length=8), DeepSpeed(), tp_rank)
        ours = [
            [stage.layers[index].placed.prefix + parameter.name, parameter.numel]
            for index in stage.registered
            for parameter in stage.layers[index].parameters
        ]
        assert ours == outcome[place].get("parameters"), outcome[place].get("error")

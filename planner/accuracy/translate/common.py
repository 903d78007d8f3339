"""What all frameworks' entries are read alike: machines, lengths, precision, kernels, the rank."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planner.accuracy.case import Case, UnsupportedError, Where
from planner.accuracy.entries import Entry, whole
from planner.accuracy.translate.groups import with_groups
from planner.accuracy.translate.models import Keys, configuration
from planner.model.adapters import Tuning, tuned
from planner.model.description import Model
from planner.model.load import load_model
from planner.spec.cluster import Cluster, Device
from planner.spec.deepspeed import DeepSpeed
from planner.spec.devices import device
from planner.spec.frameworks import Framework
from planner.spec.layout import Layout, ZeroStage
from planner.spec.load import Spec
from planner.spec.training import AttentionKernel, LossKernel, Precision, Recompute, Training

DEVICES_PER_NODE = 8
MAX_DEVICES = 2**17

_DEVICES: Mapping[str, str] = {
    "v100-16gb": "v100-sxm-16gb",
    "v100-32gb": "v100-sxm-32gb",
    "a100-40gb": "a100-sxm-40gb",
    "a100-80gb": "a100-sxm-80gb",
    "a800-80gb": "a100-sxm-80gb",
    "a10g-24gb": "a10g-24gb",
    "h100-80gb": "h100-sxm-80gb",
    "h100-96gb": "h100-nvl-94gb",
    "gh200-96gb": "h100-nvl-94gb",
    "h800-80gb": "h800-sxm-80gb",
    "h200-141gb": "h200-sxm-141gb",
    "b200": "b200-sxm-180gb",
    "gb200": "gb200-186gb",
    "mi300x": "mi300x-192gb",
    "titan rtx 24gb": "rtx-3090-24gb",
}
"""How sources call devices of the catalogue, or the nearest in size."""

_STAND_IN = "h100-sxm-80gb"

_OFFLOADED = "activation_checkpoint_offload"


@dataclass(slots=True)
class Reader:
    """An entry while it is read; what it leaves open is noted."""

    entry: Entry
    assumptions: list[str] = field(default_factory=list)

    def assume(self, text: str) -> None:
        """Note what was taken where the entry is silent."""
        self.assumptions.append(text)

    def device(self) -> Device:
        """The device, or a stand-in where it is not told."""
        told = str(self.entry.hardware.get("gpu", "unknown"))
        plain = re.sub(r" *\(.*", "", told.lower().replace("_", "-"))
        name = _DEVICES.get(plain)
        if name is None:
            self.assume(f"device {told!r} is not known: counted as {_STAND_IN}")
        return device(name or _STAND_IN)

    def cluster(self) -> Cluster:
        """As many devices as the run had, eight a node."""
        count = whole(self.entry.parallel, "world_size") or whole(self.entry.hardware, "count")
        if count is None:
            degrees = [whole(self.entry.parallel, axis, 1) or 1 for axis in ("tp", "pp", "cp")]
            count = degrees[0] * degrees[1] * degrees[2]
            self.assume(f"the number of devices is not given: {count}, so that dp is 1")
        if not 0 < count <= MAX_DEVICES:
            raise UnsupportedError(f"{count} devices are not from 1 to {MAX_DEVICES}")
        per_node = min(DEVICES_PER_NODE, count)
        if count % per_node:
            per_node = 1
        return Cluster(nodes=count // per_node, devices_per_node=per_node, device=self.device())

    def layout(self, cluster: Cluster, stage: ZeroStage, *, spread: bool = True) -> Layout:
        """Degrees; dp is what the others leave. ``spread``: experts are spread over its ranks."""
        parallel = self.entry.parallel
        tp, pp, ep = (whole(parallel, axis, 1) or 1 for axis in ("tp", "pp", "ep"))
        sp = whole(parallel, "ulysses_sp", 1) or 1
        ep = ep if spread else 1
        dp, rest = divmod(cluster.num_devices, tp * pp * sp)
        if rest or not dp:
            raise UnsupportedError(
                f"tp {tp} x pp {pp} x sp {sp} do not divide {cluster.num_devices} devices"
            )
        if dp % ep:
            raise UnsupportedError(f"ep {ep} does not divide dp {dp}")
        return Layout(dp=dp, tp=tp, pp=pp, ep=ep, sp=sp, zero_stage=stage)

    def micro_batch(self) -> int:
        """Sequences of a micro-step."""
        size = whole(self.entry.training, "micro_batch") or whole(
            self.entry.training, "local_batch"
        )
        if size is None:
            self.assume("the micro-batch is not given: 1")
            return 1
        return size

    def sequence(self) -> int:
        """Tokens of a sequence."""
        length = whole(self.entry.training, "seq_len")
        if length is None:
            raise UnsupportedError("the sequence length is not given")
        return length

    def micro_steps(self) -> int:
        """Gradient accumulation."""
        training = self.entry.training
        return whole(training, "num_microbatches") or whole(training, "grad_accum") or 1

    def precision(self) -> Precision:
        """Of weights and activations."""
        told = str(self.entry.training.get("param_dtype", ""))
        for name, words in _PRECISIONS.items():
            if any(word in told for word in words):
                return name
        self.assume(f"param_dtype {told!r} is taken as bf16")
        return "bf16"

    def recompute(self) -> Recompute:
        """None, selective or full."""
        told = self.entry.training.get("recompute", "none")
        text = str(told.get("granularity", "none") if isinstance(told, dict) else told)
        if (
            isinstance(told, dict)
            and told.get("modules")
            and "core_attn" not in str(told["modules"])
        ):
            return "none"
        if "selective" in text or "SAC" in text:
            return "selective"
        if "none" in text or text in {"off", "False"}:
            return "none"
        return "full"

    def attention(self) -> AttentionKernel:
        """Which kernel runs; sdpa where nothing is told."""
        told = str(self.entry.training.get("attention_backend", "sdpa")).lower()
        if "eager" in told or "unfused" in told:
            return "eager"
        return "flash" if told.startswith(("flash", "auto")) else "sdpa"

    def loss(self) -> LossKernel:
        """How logits become a loss."""
        told = str(self.entry.training.get("cross_entropy", "eager")).lower()
        if "fused linear" in told or "liger" in told:
            return "fused"
        if "fused triton" in told:
            return "in_place"
        return "chunked" if "chunked" in told else "eager"

    def where(self, pp: int) -> Where:
        """The pipeline stage that was read."""
        stage = whole(self.entry.parallel, "pp_stage")
        if stage is not None:
            return stage
        if "last" in self.entry.scope and "first (last)" not in self.entry.scope:
            return "last"
        return 0 if pp > 1 and "rank 0" in self.entry.scope else "worst"

    def dropout(self) -> float:
        """The probability that is applied; 0 where none is told."""
        told = self.entry.training.get("hidden_dropout", 0.0)
        return float(told) if isinstance(told, int | float) else 0.0

    def full_training(self) -> None:
        """Refuse what trains only a part of the model, in eight bits, or keeps elsewhere."""
        method = str(self.entry.training.get("method", "full"))
        if not method.lower().startswith("full"):
            raise UnsupportedError(f"method {method}: frozen parameters are not modelled")
        self.plain_numbers("quantization")

    def plain_numbers(self, *others: str) -> None:
        """Refuse what is computed in eight bits, or kept elsewhere."""
        training = self.entry.training
        if training.get("float8") or training.get("fp8_format"):
            self.assume("products in eight bits are counted as in sixteen")
        for key in (*others, "tiled_mlp", _OFFLOADED):
            if training.get(key):
                raise UnsupportedError(f"{key} {training[key]} is not modelled")

    def case(
        self,
        *,
        training: Training,
        stage: ZeroStage,
        deepspeed: DeepSpeed | None = None,
        framework: Framework | None = None,
        vocabulary: int | None = None,
        tuning: Tuning | None = None,
        spread: bool = True,
        states_shared: bool = False,
    ) -> Case:
        """The entry with what a framework's translator made of it."""
        cluster = self.cluster()
        layout = self.layout(cluster, stage, spread=spread)
        keys = configuration(self.entry.model, dropout=self.dropout())
        if vocabulary is not None:
            keys["vocab_size"] = vocabulary
        return Case(
            spec=Spec(
                path=Path(self.entry.id),
                model=keys,
                cluster=cluster,
                training=training,
                layout=layout,
                deepspeed=deepspeed or DeepSpeed(),
                framework=framework or Framework(),
            ),
            model=self._model(keys) if tuning is None else tuned(self._model(keys), tuning),
            states_shared=states_shared,
            where=self.where(layout.pp),
            assumptions=tuple(self.assumptions),
        )

    def _model(self, keys: Keys) -> Model:
        model = load_model(keys, folder=Path())
        heads = whole(self.entry.model, "num_heads")
        groups = whole(self.entry.model, "num_kv_heads", heads)
        if model.family == "gpt2" and groups is not None and groups != heads:
            return with_groups(model, groups)
        return model


_PRECISIONS: Mapping[Precision, tuple[str, ...]] = {
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "float16"),
    "fp32": ("fp32", "float32"),
}

"""Facts of the chips that steps are planned for, as their makers publish them.

A device is what JAX sees: of a chip with two of them, half. `link` is what a device may send to the
others in a second, all links together, in one direction.
"""

from typing import NamedTuple

GB, TB = 10**9, 10**12


class Chip(NamedTuple):
    """One kind of device; None = not known.

    Attributes:
      name: as it is sold.
      memory: bytes of a device.
      bf16, f32: FLOP/s of matrix products with operands of that type, at most. TPUs multiply f32 as
        bf16 unless told otherwise, NVIDIA's as TF32.
      bandwidth: bytes/s of that memory.
      link: bytes/s to other devices of a pod or of a machine.
      source: of these numbers.
      host: bytes/s from the host.
      shapes: of pods that there are; () = not listed here.
      cores: devices that JAX sees in a chip.
      machine: devices that `link` is between; beyond them the network is slower.
      gpu: (cores, FPUs of a core, GHz, compute capability, L2 bytes, shared memory of a core and most
        of a block) of an NVIDIA chip, for its compiler.
    """

    name: str
    memory: float | None
    bf16: float | None
    f32: float | None
    bandwidth: float | None
    link: float | None
    source: str
    gpu: tuple | None = None
    host: float | None = None
    shapes: tuple[str, ...] = ()
    cores: int = 1
    machine: int | None = None


_TPU = "cloud.google.com/tpu/docs, system architecture"
_PODS = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_HOPPER = (132, 128, 1.98, (9, 0), 52_428_800, 233_472, 232_448)
_AMPERE = (108, 64, 1.41, (8, 0), 41_943_040, 167_936, 166_912)

CHIPS = {
    "v5e": Chip("TPU v5e", 16 * GB, 197 * TB, 197 * TB, 819 * GB, 200 * GB, _TPU, shapes=_PODS),
    "v5p": Chip("TPU v5p", 95 * GB, 459 * TB, 459 * TB, 2_765 * GB, 600 * GB, _TPU),
    "v6e": Chip("TPU v6e", 32 * GB, 918 * TB, 918 * TB, 1_640 * GB, 448 * GB, _TPU, shapes=_PODS),
    "tpu7x": Chip("TPU7x, half a chip", 96 * GB, 1_153 * TB, 1_153 * TB, 3_690 * GB, 600 * GB, _TPU, cores=2),
    "h100": Chip(
        "NVIDIA H100 SXM",
        80 * GB,
        989 * TB,
        494 * TB,
        3_350 * GB,
        450 * GB,
        "NVIDIA H100 data sheet",
        _HOPPER,
        host=64 * GB,
        machine=8,
    ),
    "h200": Chip(
        "NVIDIA H200 SXM",
        141 * GB,
        989 * TB,
        494 * TB,
        4_800 * GB,
        450 * GB,
        "NVIDIA H200 data sheet",
        _HOPPER,
        host=64 * GB,
        machine=8,
    ),
    "a100": Chip(
        "NVIDIA A100 SXM 80GB",
        80 * GB,
        312 * TB,
        156 * TB,
        2_039 * GB,
        300 * GB,
        "NVIDIA A100 data sheet",
        _AMPERE,
        host=32 * GB,
        machine=8,
    ),
    "cpu": Chip("this machine's CPU", None, None, None, None, None, "not known: measure with benchmarks.scale"),
}
"""Name in a target -> facts."""


def gpu_config(chip: Chip) -> str:
    """What NVIDIA's compiler has to know of a chip that is not here: a `GpuTargetConfigProto` as text."""
    assert chip.gpu is not None and chip.memory is not None and chip.bandwidth is not None
    cores, fpus, clock, (major, minor), cache, shared, most_shared = chip.gpu
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_block_optin": most_shared,
        "shared_memory_per_core": shared,
        "core_count": cores,
        "fpus_per_core": fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": int(chip.memory),
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    facts = " ".join(f"{name}: {value}" for name, value in device.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f'gpu_device_info {{ {facts} {capability} }} platform_name: "CUDA" '
        f'dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{chip.name}"'
    )

"""Whether an accelerator is at hand, found out without starting JAX."""

import glob
import importlib.util
import os


def expects_accelerator() -> bool:
    """Whether JAX will find a GPU or TPU, judged without starting JAX.

    Needs an accelerator's device file and a JAX plugin for it; the variable JAX_PLATFORMS decides
    where it is set.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    cuda = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
        devices = glob.glob("/dev/nvidia[0-9]*") + glob.glob("/dev/kfd")
        if devices and any(importlib.util.find_spec(name) for name in cuda):
            return True
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(tpu and importlib.util.find_spec("libtpu"))

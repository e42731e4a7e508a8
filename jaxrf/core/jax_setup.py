"""Settings of JAX that programs make once, at their start."""

import jax

from jaxrf.core.user_cache import cache_folder


def set_up_jax(precision: str) -> None:
    """Sets the matmul precision and keeps compiled programs in the user's cache folder.

    Args:
      precision: of float32 matrix products: "default", "high" or "highest".
    """
    jax.config.update("jax_default_matmul_precision", precision)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

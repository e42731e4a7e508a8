"""Set-up shared by all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# In the environment rather than in jax.config alone, so that programs started by a test inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_configure(config: pytest.Config) -> None:
    # Most of the suite's time is compilation, and most programs are the same as in the last run.
    cache = Path(config.rootpath, ".pytest_cache", "jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

    import jax

    # A plugin may have imported jax before the variables were set.
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # (n,) + (n, 1) is (n, n) by numpy's rules and nearly always a mistake in ours.
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Lets go of what a module compiled: each program holds maps, of which Linux allows 65,530."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(autouse=True)
def forget_many_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets go of them within a module too, if it compiles very many."""
    yield
    maps = Path("/proc/self/maps")
    # Counted now and then, as that takes some milliseconds.
    if hash(request.node.nodeid) % 16 == 0 and maps.exists():
        with maps.open("rb") as lines:
            many = sum(1 for _ in lines) > 20_000
        if many:
            import jax

            jax.clear_caches()


# The first example compiles and the others do not: a deadline would only measure that.
settings.register_profile("jaxrf", deadline=None)
settings.register_profile("jaxrf-ci", deadline=None, derandomize=True)
settings.load_profile("jaxrf-ci" if os.environ.get("CI") else "jaxrf")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scenes: $JAXRF_DATA, or data/ beside the tests."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("JAXRF_DATA") or root / "data")
    if not folder.is_dir():
        pytest.skip(f"no real scenes: {folder} is no folder; set JAXRF_DATA to one that holds them")
    return folder


NAMES = ("chromium", "chromium-browser", "google-chrome")
# WebGL without a graphics card, and no words with the world outside.
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a real browser, as playwright has it."""
    browser = next(filter(None, map(shutil.which, NAMES)), "")
    if not browser:
        pytest.skip("no browser: install chromium to test what it shows")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = opened.new_page(viewport={"width": 800, "height": 500})
        # Without a graphics card, and beside another test, a page takes its time.
        page.set_default_timeout(240_000)
        yield page
        opened.close()

"""Numbers of the original implementations, reproduced: every case of the folder given by `--fixtures`."""

import pytest
import torch

from parity import KINDS, Unsupported, measure, read_cases


def pytest_generate_tests(metafunc):
    """One test per case of the manifest."""
    folder = metafunc.config.getoption("--fixtures")
    if (folder / "manifest.json").is_file():
        cases = read_cases(folder)
        metafunc.parametrize("case", cases, ids=[case.id for case in cases])
    else:
        reason = pytest.mark.skip(reason=f"no parity fixtures in {folder}: see --fixtures")
        metafunc.parametrize("case", [pytest.param(None, marks=reason, id="no fixtures")])


def test_equals_the_original_implementation(case):
    assert case.kind in KINDS, f"no check for the kind {case.kind!r}"
    try:
        worst = measure(case)
    except Unsupported as reason:
        pytest.skip(str(reason))
    aim = KINDS[case.kind].aim
    assert aim is None or worst <= aim, f"worst relative difference {worst:.2g}, expected at most {aim}"
    assert torch.is_grad_enabled()

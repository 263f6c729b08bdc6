"""What a resumed run reads when its flags have changed."""

import pytest

from megatron.pretrain.training.positions import first_validation_sample, samples_of_the_run
from megatron.pretrain.training.state import Progress
from tests.unit.data.support import make_config

MOCK = "--mock-data --vocab-size 30 --train-iters 100 --global-batch-size"
HALFWAY = Progress(iteration=50, consumed_train_samples=800, consumed_valid_samples=48)


@pytest.mark.parametrize(("batch", "samples"), [(16, 1600), (8, 1200), (32, 2400)])
def test_a_run_draws_what_it_has_read_and_what_is_left(batch: int, samples: int) -> None:
    assert samples_of_the_run(make_config(f"{MOCK} {batch}"), HALFWAY) == samples
    assert samples_of_the_run(make_config(f"{MOCK} {batch}"), Progress()) == 100 * batch


def test_a_run_beyond_its_end_draws_no_more() -> None:
    done = Progress(iteration=120, consumed_train_samples=1920)
    assert samples_of_the_run(make_config(f"{MOCK} 16"), done) == 1920


def test_validation_goes_on_unless_the_run_only_evaluates() -> None:
    assert first_validation_sample(make_config(f"{MOCK} 16"), HALFWAY) == 48
    assert first_validation_sample(make_config(f"{MOCK} 16 --skip-train"), HALFWAY) == 0

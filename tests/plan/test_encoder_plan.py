"""What a plan says of encoders in the model."""

import jax
import pytest

from em3_jax.core.types import State
from em3_jax.plan import page, report, sizes, targets
from em3_jax.training import experiment
from tests import raw_items

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]


def test_a_plan_tells_the_encoders_share_and_what_would_make_it_less(tmp_path):
    data = raw_items.write_pictures(tmp_path)

    def plan(**model) -> report.Plan:
        config = raw_items.small_ranking(data, image=str(tmp_path / "resnet"))
        config.model.update(model)
        parts = experiment.build(config.to_dict())
        arguments = sizes.at_hand(parts)
        target = targets.parse("cpu")
        compiled = parts.program.train_step.compile(*arguments).program
        versions = {"jax": jax.__version__}
        facts = {"examples": 32, "items": raw_items.ITEMS, "precision": "f32", "versions": versions, "assumptions": []}
        return report.make(target, compiled, arguments, **facts)

    whole, head = plan(), plan(encoder_trains={"image": "head"})
    assert whole.encoders is not None and head.encoders is not None
    assert 0 < head.encoders < whole.encoders < 1
    assert head.memory["temporaries"] < whole.memory["temporaries"] and head.flops < whole.flops
    assert f"{whole.encoders:.0%} of what the program's text moves is moved by encoders" in page.text(whole)
    others = max(whole.memory[name] for name in ("state", "features", "batch"))
    is_most = whole.encoders > 0.5 and whole.memory["temporaries"] > others
    hints = [change for change in whole.changes if "encoder_chunk" in change and "encoder_trains=head" in change]
    assert len(hints) == is_most


def test_the_hint_is_given_where_encoders_are_most_of_the_temporaries():
    memory = {"state": 10, "features": 20, "batch": 5, "temporaries": 50, "all": 85}
    nothing = sizes.Arguments(State(0, {}, {}, {}, {}), {}, {})

    def hints(encoders: float | None, **changed: int) -> list[str]:
        found = report._changes(memory | changed, None, nothing, "bf16", {}, 0, encoders)
        return [change for change in found if "encoder_trains=head" in change]

    assert hints(0.7) and not hints(0.4) and not hints(None) and not hints(0.7, features=60)

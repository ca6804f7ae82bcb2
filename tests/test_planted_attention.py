"""Where clicks depend on the nearest past item, the attention on content learns it: against no attention, and the true one."""

import json

import numpy as np
import pytest

from benchmarks.attention import TINY, TrueScore, make_config, make_data, run
from em3_jax.data.readers.planted_interest import true_weights
from em3_jax.models.attention import masked_softmax

pytestmark = pytest.mark.seconds(90)

SCORES = ("mean", "dot", "true")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[dict]]:
    """Score -> the lines that a run of some hundred steps has logged; validation alone is looked at."""
    folder = tmp_path_factory.mktemp("attention")
    data, lines = make_data(folder / "data"), {}
    for score in SCORES:
        config = make_config(data.root, score, seed=0, epochs=6.0, rate=1.0)
        config.train.eval_every, config.train.patience = 187, 0
        run(config, folder / score)
        log = (folder / score / "metrics.jsonl").read_text().splitlines()
        lines[score] = [json.loads(line) for line in log]
    return lines


def best(lines: list[dict]) -> float:
    return max(line["valid/auc"] for line in lines if "valid/auc" in line)


def test_attention_gains_half_of_what_the_true_weights_would(found):
    mean, dot, true = (best(found[score]) for score in SCORES)
    assert true - mean > 0.02  # there is something to learn
    assert dot - mean >= 0.5 * (true - mean)


def test_the_log_tells_what_has_learnt_from_what_has_not(found):
    for score, share in (("mean", 1.0), ("dot", 0.95), ("true", 0.5)):
        last = [line for line in found[score] if "train/content_attention_entropy" in line][-1]
        entropy, uniform = (last[f"train/content_attention_entropy{end}"] for end in ("", "_uniform"))
        assert entropy == pytest.approx(uniform, rel=1e-5) if score == "mean" else entropy < share * uniform


def test_true_weights_are_those_of_the_planted_clicks():
    """From embeddings as `WithLatent` makes them: the content before the latent vectors has no say."""
    random = np.random.default_rng(0)
    latent = random.standard_normal((40, 6)).astype(np.float32)
    latent /= np.linalg.norm(latent, axis=1, keepdims=True)
    embedding = np.concatenate([random.standard_normal((40, 8)), TINY * latent], axis=1).astype(np.float32)
    candidate, history = random.integers(0, 40, 9), random.integers(0, 40, (9, 7))
    mask = random.random((9, 7)) < 0.7
    weight = masked_softmax(TrueScore().apply({}, embedding[candidate], embedding[history]), mask)
    cosine = np.einsum("bk,btk->bt", latent[candidate], latent[history])
    np.testing.assert_allclose(weight, true_weights(cosine, mask), rtol=1e-4, atol=1e-6)

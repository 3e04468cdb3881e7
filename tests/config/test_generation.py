"""generation_config.json."""

import pytest

from config.tools import read
from qinfer.core.config import generation_config, with_generation
from qinfer.core.errors import BadCheckpoint


def test_generation_config(tmp_path):
    assert generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    generation = generation_config(tmp_path)
    assert with_generation(read(), generation).eos_token_ids == (151645, 151643)
    assert with_generation(read(), {"eos_token_id": 7}).eos_token_ids == (151645, 7)
    assert with_generation(read(), {}).eos_token_ids == (151645,)
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json: eos_token_id"):
        with_generation(read(), {"eos_token_id": "stop"})

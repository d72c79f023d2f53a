"""Training text and its JSON lines."""

from __future__ import annotations

import json

from worker.episodes.training_data import TrainingData, TrainingFormat, TrainingMetadata, json_line


def test_an_sft_line_is_a_conversation() -> None:
    line = json_line(TrainingData.sft("be good", "what?", 'that — "so"\n'))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "messages": [
            {"role": "system", "content": "be good"},
            {"role": "user", "content": "what?"},
            {"role": "assistant", "content": 'that — "so"\n'},
        ]
    }


def test_without_a_system_prompt_there_is_no_system_message() -> None:
    messages = json.loads(json_line(TrainingData.sft_simple("what?", "that")))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]


def test_a_dpo_line_holds_prompt_chosen_and_rejected() -> None:
    data = TrainingData.dpo("what?", "this", "that")
    assert data.format is TrainingFormat.DPO
    assert json.loads(json_line(data)) == {"prompt": "what?", "chosen": "this", "rejected": "that"}


def test_a_dpo_line_opens_with_the_system_prompt_where_there_is_one() -> None:
    data = TrainingData.dpo_with_system("be good", "what?", "this", "that")
    assert json.loads(json_line(data))["prompt"] == "be good\n\nwhat?"


def test_metadata_is_no_part_of_the_line() -> None:
    plain = TrainingData.sft_simple("what?", "that")
    known = plain.with_metadata(TrainingMetadata(episode_id="e", model="m", lora="l", outcome_score=1.0))
    assert known.metadata.episode_id == "e"
    assert json_line(plain) == json_line(known)

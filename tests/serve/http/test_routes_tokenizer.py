"""The tokenizer's routes, and the others that generate nothing."""

from typing import Any

from tests.serve.served import BENIGN, MODEL, Asked, answered, user


def test_tokens_and_text_turn_into_each_other(asked: Asked) -> None:
    document = answered(asked.post("/tokenize", {"prompt": BENIGN}))
    assert document["count"] == len(document["tokens"])
    assert document["max_model_len"] == 256
    assert document["token_strs"] is None
    assert answered(asked.post("/detokenize", {"tokens": document["tokens"]})) == {"prompt": BENIGN}


def test_a_chat_is_tokenized_as_it_is_answered(asked: Asked) -> None:
    body = {"model": MODEL, "messages": [user(BENIGN)], "add_generation_prompt": True, "return_token_strs": True}
    document = answered(asked.post("/tokenize", body))
    assert tuple(document["tokens"]) == asked.engine.prompts.of_chat([user(BENIGN)])
    assert document["token_strs"][-1] == "<|assistant|>"


def test_a_text_longer_than_the_context_is_counted_all_the_same(asked: Asked) -> None:
    assert answered(asked.post("/tokenize", {"prompt": "lever " * 300}))["count"] > 256


def test_no_tokens_are_no_mistake(asked: Asked) -> None:
    assert answered(asked.post("/tokenize", {"prompt": ""}))["tokens"] == []
    assert answered(asked.post("/detokenize", {"tokens": []})) == {"prompt": ""}


def test_requests_that_make_no_sense_are_refused(asked: Asked) -> None:
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "x", "messages": [user("x")]}),
        ("/tokenize", {"messages": [user("x")], "add_generation_prompt": False}),
        ("/tokenize", {"messages": [user("x")], "continue_final_message": True}),
        ("/tokenize", {"messages": [user("x")], "add_special_tokens": True}),
        ("/detokenize", {"tokens": [10**9]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": ["1"]}),
    ):
        assert asked.post(path, body).status_code == 400, body


def test_lm_eval_finds_what_it_looks_for(asked: Asked) -> None:
    document = answered(asked.get("/tokenizer_info"))
    assert document["eos_token"] == "<|end|>"
    assert "assistant" in document["chat_template"]


def test_one_model_is_listed(asked: Asked) -> None:
    (model,) = answered(asked.get("/v1/models"))["data"]
    assert (model["id"], model["max_model_len"]) == (MODEL, 256)
    by_name = answered(asked.get(f"/v1/models/{MODEL}"))
    assert by_name | {"created": 0} == model | {"created": 0}  # each of these requests is to an application of its own
    assert asked.get("/v1/models/other").status_code == 404


def test_the_guard_says_what_it_is(asked: Asked) -> None:
    document = answered(asked.get("/guard"))
    assert document["spec_digest"] == asked.engine.status.digest
    assert document["verdict"] == "effective"
    assert document["layers"] == [4, 5]
    assert document["in_force"] is True
    assert document["last_self_test"]["passed"] is True
    before = document["counts"].get("generated_tokens", 0)
    asked.chat(max_tokens=3)
    assert answered(asked.get("/guard"))["counts"]["generated_tokens"] == before + 3


def test_routes_that_are_not_there_answer_as_openai_does(asked: Asked) -> None:
    for response, status in (
        (asked.get("/v1/nothing"), 404),
        (asked.get("/v1/chat/completions"), 405),
        (asked.post("/v1/embeddings", {"input": "x"}), 404),
        (asked.post("/v1/load_lora_adapter", {"lora_name": "x"}), 404),
    ):
        assert response.status_code == status
        error: dict[str, Any] = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}


def test_the_documentation_loads_nothing_from_elsewhere(asked: Asked) -> None:
    assert asked.get("/docs").status_code == 404
    assert asked.get("/redoc").status_code == 404
    assert "/v1/chat/completions" in answered(asked.get("/openapi.json"))["paths"]

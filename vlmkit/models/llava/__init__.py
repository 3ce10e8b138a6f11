"""The models that `vlmkit train` makes: LLaVA, connectors and vision towers that transformers lacks."""

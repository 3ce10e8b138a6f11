"""Chat templates for language models that come without one; replies end in the model's own end token."""

from pathlib import Path

from vlmkit.errors import VlmkitError
from vlmkit.io.files import read_text

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATES = {
    # LLaVA-1.5 was trained with it, on Vicuna 1.5.
    "vicuna": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set said = messages[1:] %}"
        '{% else %}{% set system = "' + VICUNA_SYSTEM + '" %}{% set said = messages %}{% endif %}'
        "{{ bos_token }}{{ system }} {% for m in said %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
        "{% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set said = messages[1:] %}"
        "{% set start = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
        "{% else %}{% set said = messages %}{% set start = '' %}{% endif %}"
        "{% for m in said %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
        "{{ start if loop.first }}{{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{{ eos_token if m['role'] == 'assistant' else '<|im_end|>' }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


def chat_template(name: str) -> str:
    """The template of this name, or in the Jinja file of this path. Raises VlmkitError."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if "/" not in name and "." not in name and not Path(name).exists():
        raise VlmkitError(f"unknown template {name}", f"use {', '.join(TEMPLATES)}, or a file such as ./chat.jinja")
    return read_text(name, "name a Jinja file, or " + ", ".join(TEMPLATES))

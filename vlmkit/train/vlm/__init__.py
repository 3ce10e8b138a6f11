"""Stages of vision-language models: dialogues -> sequences -> packed rows -> model and loss -> trainer -> folder."""

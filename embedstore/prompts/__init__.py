"""Prompt banks before they are embedded: texts for every task, with the class or the number that each speaks of."""

from __future__ import annotations

from embedstore.prompts.prompt_bank import Prompt, PromptBank, prompt_banks, read_prompt_bank

__all__ = ["Prompt", "PromptBank", "prompt_banks", "read_prompt_bank"]

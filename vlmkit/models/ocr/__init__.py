"""Engines that read what is written in pictures."""

"""The Python interface: what `import vlmkit` offers to a program, by names that load what they need when asked for."""

"""Frames of films as pictures: `clip.mp4#t=12.5`."""

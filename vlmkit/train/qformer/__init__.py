"""`vlmkit train align` and `instruct` of a BLIP-2 or InstructBLIP: of its Q-Former, all else frozen."""

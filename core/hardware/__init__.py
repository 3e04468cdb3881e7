"""The computer: its processor, cards and memory, and Paddle on it."""

"""What a head is trained on: which arrays and taps, which rows, and what is to be learnt of them."""

"""What embeddings have learnt, told by neighbours (section 4.5 of the paper): tables 8 and 9, and a page to look at them."""

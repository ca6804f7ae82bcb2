"""What a step costs on devices that are not here, read from the program that is compiled for them."""

"""How long the tail is: profiles of class sizes, and the subset that has them."""

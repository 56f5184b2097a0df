"""What is known of each operator: a table, and the small functions for labels that its rows name."""

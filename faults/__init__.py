"""What happens when something goes wrong: `make faults`; docs/reliability.md has what is promised."""

"""Features as training data: extracted once an epoch, their class statistics, and features generated from these."""

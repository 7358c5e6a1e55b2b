"""From records to tables and figures. Nothing here trains, and no module here imports torch when it is imported."""

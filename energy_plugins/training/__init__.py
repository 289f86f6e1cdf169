"""What the modules of all frameworks share: a training that is being measured. It knows no framework but torch."""

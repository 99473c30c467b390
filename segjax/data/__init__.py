"""What `segjax.data` holds: sources, augmentation on the device, and the pipeline between them."""

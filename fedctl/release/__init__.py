"""What is signed and shipped: keys, bundles, the agent and its wheels."""

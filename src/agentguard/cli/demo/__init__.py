"""``agentguard demo``: a support agent on the real OpenAI SDK against a scripted model on a local port."""

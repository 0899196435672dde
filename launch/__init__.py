"""Getting runs onto machines. Never imports torch."""

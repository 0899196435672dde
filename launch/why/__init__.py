"""Why a run waits, failed, is slow, had a spike or went wrong: each kind of cause is a module with `find(facts)`."""

"""Use cases: each public function is one thing an admin asks for; they return results and print nothing."""

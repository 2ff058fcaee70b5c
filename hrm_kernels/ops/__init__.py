"""One room per op: ``__init__`` holds the public function and its backends, ``reference`` the definition of right."""

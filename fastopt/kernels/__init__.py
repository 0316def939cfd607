"""The update rules, compiled once for every instruction-set level; `fastopt.engine` picks one at import."""

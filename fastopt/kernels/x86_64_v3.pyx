include "rules.pxi"

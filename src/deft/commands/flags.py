"""What several commands ask of their flags."""

from cyclopts import Parameter
from cyclopts.validators import Number

AT_LEAST_1 = Parameter(validator=Number(gte=1))

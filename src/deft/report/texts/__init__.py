"""All that deft says in reports, tables, charts and at the end of a run: one file a language, with the same keys."""

from deft.report.texts import en, zh

UNITS = {"en": en.UNIT, "zh": zh.UNIT}
ABILITIES_CLEAR = {"en": en.ABILITIES_CLEAR, "zh": zh.ABILITIES_CLEAR}
ABILITY_NAMES = {"en": en.ABILITY_NAMES, "zh": zh.ABILITY_NAMES}
TEXTS = {"en": en.PAGE, "zh": zh.PAGE}
TERMINAL_TEXTS = {"en": en.TABLE, "zh": zh.TABLE}
ENDING_TEXTS = {"en": en.ENDING, "zh": zh.ENDING}
CHART_TEXTS = {"en": en.CHART, "zh": zh.CHART}
QUICKSTART_TEXTS = {"en": en.QUICKSTART, "zh": zh.QUICKSTART}

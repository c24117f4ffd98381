"""What a page and a terminal's table of results say, in English and Chinese."""

from typing import Literal

from deft.evaluate.loss import OVERALL

Lang = Literal["en", "zh"]
UNITS: dict[str, str] = {"en": "\u00a0%", "zh": "%"}
"""How a language writes the percent sign after a number."""


ABILITY_NAMES: dict[str, dict[str, str]] = {
    "en": {OVERALL: "all rows"},
    "zh": {
        OVERALL: "全部",
        "biology": "生物",
        "chinese": "中文",
        "code": "代码",
        "creative_writing": "创意写作",
        "ethics": "伦理",
        "history": "历史",
        "math": "数学",
        "reasoning": "推理",
        "role_play": "角色扮演",
        "understanding": "理解",
        "other": "其他",
    },
}


TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "html_lang": "en",
        "title": "What training on {rows} rows changed",
        "sentence": (
            "On {held_out} rows the model never trained on, the loss {moved} from <b>{before:.3f}</b> to "
            "<b>{after:.3f}</b> nats per token: <b>{percent}</b> (95&nbsp;% interval {low} to {high}), "
            "clear of zero in {clear} of {abilities} abilities."
        ),
        "fell": "fell",
        "rose": "rose",
        "picture": "Loss per ability, before and after",
        "axis": "loss on held-out rows, nats per token (further left is better)",
        "legend": "○ before&ensp;● after&ensp;▬ 95 % interval of the change, laid from the point before",
        "table": "The figures",
        "ability": "ability",
        "rows": "rows",
        "before": "before",
        "after": "after",
        "change": "change",
        "interval": "95 % interval",
        "verdict": "clear of zero?",
        "better": "yes, better",
        "worse": "yes, worse",
        "unclear": "no",
        "unknown": "too few rows",
        "replies": "Two replies",
        "asked": "asked",
        "curve": "The training, step by step",
        "curve_note": "Line: loss of each step’s training rows. Dots: loss of the validation rows.",
        "step": "optimizer step",
        "ran": "What ran",
        "model": "model",
        "settings": "settings",
        "versions": "versions",
        "fingerprints": "fingerprints of the inputs",
        "times": "time",
        "reading": "How to read this",
        "reading_loss": (
            "<b>Nats per token.</b> The loss is how surprised the model is by each token of the right reply: the "
            "negative natural logarithm of the probability it gave that token, on average. 0 is certainty; "
            "{before:.2f} nats means one chance in {chance_before:.1f} per token, {after:.2f} nats one in "
            "{chance_after:.1f}."
        ),
        "reading_interval": (
            "<b>The interval.</b> The held-out rows are a sample. Drawn again 2,000 times with replacement (each row’s "
            "before and after together), the change falls into the interval 95 % of the time, widened for small "
            "numbers of rows. Clear of zero means that the draw of the rows alone does not explain the change. It "
            "covers one training run: another seed would give a slightly different model."
        ),
        "reading_accuracy": (
            "<b>Not accuracy.</b> A lower held-out loss means that replies of this kind and form have become likelier. "
            "It does not count right answers: much of a first drop is the model picking up the form of the replies. "
            "Measure accuracy with questions that have answers before you claim an ability."
        ),
        "next": "What to do next",
    },
    "zh": {
        "html_lang": "zh-CN",
        "title": "用 {rows} 条数据训练之后的变化",
        "sentence": (
            "在模型从未训练过的 {held_out} 条留出数据上，损失从每词元 <b>{before:.3f}</b> 纳特{moved}到 "
            "<b>{after:.3f}</b>：<b>{percent}</b>（95% 区间 {low} 至 {high}），"
            "{abilities} 项能力中有 {clear} 项明确不为零。"
        ),
        "fell": "降",
        "rose": "升",
        "picture": "各项能力训练前后的损失",
        "axis": "留出数据上的损失，纳特/词元（越靠左越好）",
        "legend": "○ 训练前&ensp;● 训练后&ensp;▬ 变化的 95% 区间（从训练前的点量起）",
        "table": "具体数字",
        "ability": "能力",
        "rows": "条数",
        "before": "训练前",
        "after": "训练后",
        "change": "变化",
        "interval": "95% 区间",
        "verdict": "明确不为零？",
        "better": "是，变好",
        "worse": "是，变差",
        "unclear": "否",
        "unknown": "条数太少",
        "replies": "两个回答",
        "asked": "问题",
        "curve": "逐步的训练损失",
        "curve_note": "折线：每一步训练数据的损失。圆点：验证数据的损失。",
        "step": "优化器步数",
        "ran": "运行记录",
        "model": "模型",
        "settings": "设置",
        "versions": "版本",
        "fingerprints": "输入的指纹",
        "times": "用时",
        "reading": "怎样读这份报告",
        "reading_loss": (
            "<b>每词元的纳特。</b>损失表示模型对正确回答的每个词元有多“意外”：它给该词元的概率取自然对数的负值，再求平均。"
            "0 表示完全确定；{before:.2f} 纳特相当于每个词元猜中的机会为 {chance_before:.1f} 分之一，"
            "{after:.2f} 纳特则为 {chance_after:.1f} 分之一。"
        ),
        "reading_interval": (
            "<b>区间。</b>留出数据只是一个样本。把这些数据有放回地重抽 2,000 次（每条的前后成对保留），"
            "变化有 95% 落在此区间内；条数少时区间已相应放宽。“明确不为零”表示仅凭抽到哪些数据解释不了这个变化。"
            "区间只针对这一次训练：换一个随机种子，模型会略有不同。"
        ),
        "reading_accuracy": (
            "<b>不是正确率。</b>留出损失降低，说明这类内容和形式的回答变得更可能，并不等于答对的题更多："
            "最初的下降有很大一部分来自模型学会了回答的形式。在宣称具备某项能力之前，请用有标准答案的题目测正确率。"
        ),
        "next": "接下来",
    },
}


TERMINAL_TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "interval": "95 % interval (%)",
        "verdict": "clear\nof zero",
        "better": "✓",
        "worse": "✓ worse",
        "unclear": "no",
        "unknown": "–",
    },
    "zh": {
        "interval": "95% 区间（%）",
        "verdict": "明确不为零",
        "better": "✓",
        "worse": "✓ 变差",
        "unclear": "否",
        "unknown": "–",
    },
}
"""What the terminal's table, which must fit 80 columns, says shorter than the page."""

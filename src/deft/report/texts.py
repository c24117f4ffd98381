"""What a page and a terminal's table of results say, in English and Chinese."""

from typing import Literal

from deft.losses import OVERALL

Lang = Literal["en", "zh"]
UNITS: dict[str, str] = {"en": "\u00a0%", "zh": "%"}
"""How a language writes the percent sign after a number."""
ABILITIES_CLEAR: dict[str, tuple[str, str, str]] = {
    "en": (
        ", with too few rows in each ability for intervals of their own",
        ", clear of zero in {clear} of {abilities} abilities",
        ", clear of zero in {clear} of {abilities} abilities",
    ),
    "zh": (
        "，各项能力的条数太少，无法单独给出区间",
        "，{abilities} 项能力中有 {clear} 项变化显著（区间不含 0）",
        "，{abilities} 项能力的变化均显著（区间不含 0）",
    ),
}
"""In how many abilities the change is clear of zero: how it is said that none can be told, of some, and of all."""

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
            "<b>{after:.3f}</b> nats per token: <b>{percent}</b> (95&nbsp;% interval {low} to {high})"
            "{of_abilities}."
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
            "<b>{after:.3f}</b>：<b>{percent}</b>（95% 区间 {low} 至 {high}）"
            "{of_abilities}。"
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
        "verdict": "变化显著？",
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
            "变化有 95% 落在此区间内；条数少时区间已相应放宽。"
            "“变化显著”即区间不含 0，表示仅凭抽到哪些数据解释不了这个变化。"
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
        "verdict": "变化显著",
        "better": "✓",
        "worse": "✓ 变差",
        "unclear": "否",
        "unknown": "–",
    },
}
"""What the terminal's table, which must fit 80 columns, says shorter than the page."""

ENDING_TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "report": "report   ",
        "picture": "picture  ",
        "next": "Next",
        "activate": "once in each terminal",
        "chat": "talk to it in the terminal",
        "page": "talk to it in the browser",
        "audit": "look at your own data",
        "train": "train on your own data",
        "merge": "merge the adapter into its base model",
        "export": "write it as a folder to publish",
        "runs": "compare it with other runs",
        "summary": (
            "Loss on {held_out} held-out rows: {before:.3f} → {after:.3f} nats per token, {percent} "
            "(95 % interval {low} to {high})"
        ),
        "training_loss": (
            "Training loss: {first:.3f} at the first step, {last:.3f} at the last (nats per token). Nothing was held "
            "out, so this does not say how much was learned."
        ),
        "cost": "{rows} training rows · {time} in all",
        "cost_resumed": "{rows} training rows · {time} since it was resumed",
        "chosen": "The best epoch was chosen by these same rows, which makes the gain look a little larger than it is.",
    },
    "zh": {
        "report": "报告  ",
        "picture": "图    ",
        "next": "接下来",
        "activate": "每个终端先执行一次",
        "chat": "在终端里与它对话",
        "page": "在浏览器里与它对话",
        "audit": "检查你自己的数据",
        "train": "用你自己的数据训练",
        "merge": "把适配器合并进基座模型",
        "export": "导出为可发布的文件夹",
        "runs": "与其他训练比较",
        "summary": (
            "{held_out} 条留出数据上的损失：每词元 {before:.3f} → {after:.3f} 纳特，"
            "{percent}（95% 区间 {low} 至 {high}）"
        ),
        "training_loss": (
            "训练损失：第一步 {first:.3f}，最后一步 {last:.3f}（每词元纳特）。没有留出数据，因此看不出学到了多少。"
        ),
        "cost": "{rows} 条训练数据 · 共用时 {time}",
        "cost_resumed": "{rows} 条训练数据 · 续跑用时 {time}",
        "chosen": "最好的一轮就是用这些留出数据选出来的，因此提升会略显偏大。",
    },
}
"""What the terminal says when a training is over."""

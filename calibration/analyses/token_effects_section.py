"""The report's section on tokens: where the decision falls, and how short an edit suffices."""

from calibration.analyses.analysis import Section
from calibration.report.display import TOKEN_GROUP_NAMES, estimate, number, percent, plural, share
from calibration.report.plot_parts import Json, Plot, axis, layout, points, whiskers
from guard.analyses.token_effects import TokenEffects, WindowedEdit

MOST_LABELS = 12
MOST_CELL_LABELS = 8


def describe(measured: TokenEffects) -> Section:
    """The section, its figures with their numbers."""
    plots = [heat_map(measured, noising=True), heat_map(measured, noising=False)]
    if measured.windows:
        plots += [by_token(measured), by_window(measured)]
    return Section("Token level", paragraphs(measured), tuple(plots))


def paragraphs(measured: TokenEffects) -> tuple[str, ...]:
    """What was found, in sentences that say no where the answer is no."""
    top = max(measured.single, key=lambda effect: effect.total_natural_indirect_effect.value)
    found = [
        "Each layer's output was patched at one token at a time, at the tokens that line up between x and x*: counted "
        "from the end of the prompt, and through the forced response. Of single tokens, the harmful run loses most at "
        f"{token_name(top.tokens)} in layer {top.layer}: {estimate(top.total_natural_indirect_effect)} of "
        f"{estimate(measured.total_effect)} nats."
    ]
    if measured.decisive is not None:
        found.append(
            f"Of the gate's edit at one token alone, {token_name(measured.decisive.token)} takes most: "
            f"{share(measured.decisive.share)} of the effect of the edit at every token."
        )
        found.append(sufficiency(measured))
    return tuple(found)


def sufficiency(measured: TokenEffects) -> str:
    """Whether a clamp of the first few tokens suffices, in one sentence."""
    enough, deployed = measured.enough, measured.deployed
    if deployed is None:
        return "No gate was found, so no clamp was tried."
    if enough is None:
        longest = [window for window in measured.windows if not window.everywhere][-1]
        return (
            "No clamp from the last prompt token on suffices: with all response tokens it takes "
            f"{share(longest.share)} of the effect and leaves harmful compliance at "
            f"{percent(longest.harmful_compliance.value)}; the edit at every token leaves "
            f"{percent(deployed.harmful_compliance.value)}."
        )
    return (
        f"A clamp on {window_name(enough)} takes {share(enough.share)} of the effect and leaves harmful compliance at "
        f"{percent(enough.harmful_compliance.value)}, as against {percent(deployed.harmful_compliance.value)} with the "
        f"edit at every token; its benign KL is {number(enough.benign_kl.value)} as against "
        f"{number(deployed.benign_kl.value)} nats."
    )


def token_name(token: int | str) -> str:
    """A token or group in words."""
    if isinstance(token, str):
        return TOKEN_GROUP_NAMES[token]
    if token == 0:
        return "the last prompt token"
    return f"response token {token}" if token > 0 else f"the prompt token {-token} before the last"


def short_name(token: int) -> str:
    """A token on an axis."""
    return "last prompt" if token == 0 else f"response {token}" if token > 0 else f"prompt −{-token}"


def window_name(window: WindowedEdit) -> str:
    """A window in words."""
    if window.everywhere:
        return "every token"
    if window.response_tokens is None:
        return "the last prompt token and all response tokens"
    if window.response_tokens == 0:
        return "the last prompt token alone"
    return f"the last prompt token and the first {plural(window.response_tokens, 'response token')}"


def heat_map(measured: TokenEffects, *, noising: bool) -> Plot:
    """Effects by layer and single token: TNIE (`noising`) or NIE."""
    kind = "TNIE" if noising else "NIE"
    name = "token-heat-noising" if noising else "token-heat-denoising"
    effects = {
        (e.tokens, e.layer): e.total_natural_indirect_effect if noising else e.natural_indirect_effect
        for e in measured.effects
    }
    tokens = sorted({effect.tokens for effect in measured.single if isinstance(effect.tokens, int)})
    layers = sorted({effect.layer for effect in measured.effects})
    values = [[effects[token, layer].value for layer in layers] for token in tokens]
    largest = max(abs(value) for row in values for value in row) or 1.0
    heat: Json = {
        "type": "heatmap", "x": layers, "y": [short_name(token) for token in tokens], "z": values, "xgap": 2, "ygap": 2,
        "zmin": -largest, "zmax": largest, "colorscale": [[0, "$two"], [0.5, "$empty"], [1, "$one"]],
        "showscale": False, "hovertemplate": "layer %{x}, %{y}: %{z:.3g} nats<extra></extra>",
    }  # fmt: skip
    if len(layers) <= MOST_CELL_LABELS:
        heat |= {"text": [[f"{value + 0.0:.1f}".replace("-", "−") for value in row] for row in values],
                 "texttemplate": "%{text}", "textfont": {"size": 11}}  # fmt: skip
    ticks = layers[:: max(1, -(-len(layers) // MOST_LABELS))]
    shape = layout(
        90 + 26 * len(tokens),
        axis("layer", tickvals=ticks, ticktext=[str(tick) for tick in ticks], zeroline=False, showgrid=False),
        axis("", showgrid=False, autorange="reversed", type="category"),
    )
    top = max(((token, layer) for token in tokens for layer in layers), key=lambda place: effects[place].value)
    label = (
        f"{kind} of each layer's output at single tokens, in nats; the largest is {number(effects[top].value)} in "
        f"layer {top[1]} at {token_name(top[0])}."
    )
    note = "Noising: what the harmful run loses." if noising else "Denoising: what the reference run gains."
    rows = tuple(
        (str(effect.layer), token_name(effect.tokens), estimate(effects[effect.tokens, effect.layer]))
        for effect in measured.effects
    )
    return Plot(name, label, [heat], shape, ("layer", "tokens", f"{kind}, nats"), rows, note)


def by_token(measured: TokenEffects) -> Plot:
    """The gate's edit at one token alone."""
    names = [short_name(edited.token) for edited in measured.edited]
    shares = [edited.share for edited in measured.edited]
    bars: Json = {
        "type": "bar", "x": names, "y": [100 * value.value for value in shares], "marker": {"color": "$one"},
        "error_y": whiskers(shares, "$text", 100.0), "text": [share(value) for value in shares], "textposition": "none",
        "hovertemplate": "%{x}: %{text}<extra></extra>",
    }  # fmt: skip
    best = measured.edited[max(range(len(shares)), key=lambda place: shares[place].value)]
    label = (
        "Share of the edit's effect that it has at one token alone; the largest is "
        f"{share(best.share)}, at {token_name(best.token)}."
    )
    shape = layout(300, axis("", type="category", tickangle=-45), axis("share of the effect, %"), showlegend=False)
    rows = tuple((token_name(e.token), estimate(e.effect), share(e.share)) for e in measured.edited)
    return Plot("edit-by-token", label, [bars], shape, ("edited token", "CE, nats", "share"), rows)


def by_window(measured: TokenEffects) -> Plot:
    """The gate's edit at the last prompt token and the first k response tokens: effect and compliance."""
    ticks = [
        "every token" if w.everywhere else "all" if w.response_tokens is None else str(w.response_tokens)
        for w in measured.windows
    ]
    traces = []
    for name, colour, symbol, values in (
        ("share of the effect", "$one", "circle", [w.share for w in measured.windows]),
        ("harmful compliance left", "$off", "square", [w.harmful_compliance for w in measured.windows]),
    ):
        style = points(name, [], [], colour, symbol, mode="lines+markers", error_y=whiskers(values, colour, 100.0))
        traces.append(
            style | {"x": ticks, "y": [100 * value.value for value in values],
                     "hovertemplate": "%{x}: %{y:.1f}%<extra>" + name + "</extra>"}
        )  # fmt: skip
    shape = layout(320, axis("response tokens edited", type="category"), axis("%", rangemode="tozero"))
    rows = tuple(
        (window_name(w), estimate(w.effect), share(w.share), percent(w.harmful_compliance.value), estimate(w.benign_kl))
        for w in measured.windows
    )
    columns = ("edit at", "CE, nats", "share", "harmful compliance", "benign KL, nats")
    return Plot("edit-by-window", sufficiency(measured), traces, shape, columns, rows)

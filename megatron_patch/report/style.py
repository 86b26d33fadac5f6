"""How the page looks: system fonts, one column, light and dark as the reader's system is."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #fff; --raised: #f6f7f8; --ink: #1c1f23; --quiet: #59616b; --line: #d8dce1;
  --link: #0a57b5; --good: #1a6e37; --bad: #a8201a; --put: #e2f5e6; --taken: #fce8e6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15181c; --raised: #1d2126; --ink: #e4e7eb; --quiet: #a0a9b4; --line: #353b43;
    --link: #83b7f7; --good: #7fd197; --bad: #ff9c94; --put: #14351f; --taken: #431d1b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere;
}
code, pre { font: .875em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
a { color: var(--link); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { position: static; }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line);
  font-size: 1.125rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1rem; }
h3 code { font-weight: 600; }
p { margin: .5rem 0; }
header p, .quiet { color: var(--quiet); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1rem 0 0; padding: 0;
  list-style: none; }
nav a { display: inline-block; padding: .25rem 0; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .375rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { width: 17.5rem; padding-right: 1rem; font-weight: 500; color: var(--quiet); }
details { border-bottom: 1px solid var(--line); }
summary { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; padding: .5rem 0;
  cursor: pointer; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary::before { content: ""; flex: none; width: 0; height: 0; margin-right: -.375rem;
  border: .3rem solid transparent; border-left-color: var(--quiet); border-right-width: 0; }
details[open] > summary::before { transform: rotate(90deg); }
summary code { font-weight: 600; }
summary .what { flex: 1 1 20rem; color: var(--quiet); }
.body { padding: 0 0 1rem 1rem; }
dl { display: grid; grid-template-columns: 9rem 1fr; gap: .375rem 1rem; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
.look { color: var(--bad); font-weight: 600; }
.fine { color: var(--good); }
pre { margin: .25rem 0; padding: .5rem 0; max-width: 100%; overflow-x: auto;
  border: 1px solid var(--line); border-radius: 4px; background: var(--raised);
  overflow-wrap: normal; tab-size: 4; }
pre code { display: inline-block; min-width: 100%; white-space: normal; font-size: .8125rem; }
pre span, pre ins, pre del { display: block; padding: 0 .75rem; text-decoration: none;
  min-height: 1.5em; white-space: pre; }
pre ins { background: var(--put); color: inherit; }
pre del { background: var(--taken); color: inherit; }
pre .gap { color: var(--quiet); }
.functions { margin: 0; padding: 0; list-style: none; }
.functions > li { display: grid; grid-template-columns: 3fr 2fr; gap: 0 1.5rem; padding: .5rem 0;
  border-bottom: 1px solid var(--line); }
.place { display: block; margin: 0; color: var(--quiet); font-size: .8125rem; }
.functions ul { margin: 0; padding: 0; list-style: none; }
@media (max-width: 40rem) {
  .plain th, .plain td { display: block; width: auto; }
  .plain th { padding-bottom: 0; border-bottom: 0; }
  .plain td { padding-top: 0; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  .body { padding-left: 0; }
  .functions > li { grid-template-columns: 1fr; gap: .25rem; }
}
@media (min-width: 56rem) {
  summary { display: grid; grid-template-columns: auto 17.5rem 7.5rem 1fr; }
}
@media print { body { max-width: none; } pre { white-space: pre-wrap; } }
"""

"""The page's style sheet: light and dark by the reader's own setting, tables that become cards on a phone, print."""

CSS = """
:root{color-scheme:light dark;--page:#ffffff;--panel:#f5f7f9;--ink:#1b1f24;--quiet:#57606a;--line:#d8dee4;
--accent:#0b5c94;--bar:#7fb2dc;--mark:#0b3d66;--control:#8a8f96;--right:#0a6640;--wrong:#a3341b}
@media (prefers-color-scheme:dark){:root{--page:#11151a;--panel:#1a2027;--ink:#e8ecf0;--quiet:#a0abb6;--line:#333c46;
--accent:#7cc0f5;--bar:#2f6ea3;--mark:#cfe6fa;--control:#7d8690;--right:#62d3a0;--wrong:#ff9d80}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .25rem;letter-spacing:-.015em}
h2{font-size:1.35rem;line-height:1.3;margin:3.25rem 0 .5rem;padding-top:1.1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.75rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}
.sub,.note,figcaption{color:var(--quiet)}
.note,figcaption{font-size:.875rem}
h1,h2,h3,p,td:first-child,td code,dd,summary,figcaption,.tile{overflow-wrap:anywhere}
code,pre{font:.875em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem;margin:1.5rem 0 0;
padding:0;list-style:none}
.facts li{background:var(--panel);border-radius:.6rem;padding:1rem 1.2rem 1.1rem}
.facts b{display:block;font-size:2rem;line-height:1.15;color:var(--accent);font-variant-numeric:tabular-nums;
letter-spacing:-.02em}
.facts strong{display:block;margin:.15rem 0 .35rem}
.facts span{display:block;font-size:.9rem;color:var(--quiet);overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1.5rem 3rem;
align-items:start;margin:1rem 0}
figure{margin:0;max-width:32rem;min-width:0}
figure.wide{max-width:54rem}
figure>strong{display:block;font-size:.95rem;margin-bottom:.6rem}
figure svg{display:block;width:100%;height:auto}
figcaption{margin-top:.5rem}
table{width:100%;border-collapse:collapse;margin:1rem 0;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .7rem .5rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--quiet);font-size:.8rem;vertical-align:bottom}
thead th{border-bottom:2px solid var(--line)}
td:not(:first-child){overflow-wrap:break-word}
th.n,td.n{text-align:right;white-space:nowrap;padding-left:.5rem}
th.n{white-space:normal}
th:last-child,td:last-child{padding-right:0}
td small{display:block;color:var(--quiet);font-size:.8rem}
tr.best td{background:var(--panel)}
tr.best td:first-child{box-shadow:-.6rem 0 0 var(--panel)}
tr.best td:last-child{box-shadow:.6rem 0 0 var(--panel)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(7rem,1fr));gap:1.25rem 1rem;margin:1rem 0;padding:0;
list-style:none}
.tile{font-size:.85rem;line-height:1.35;min-width:0}
.tile img{display:block;width:100%;aspect-ratio:1;object-fit:cover;border-radius:.4rem;margin-bottom:.4rem;
border:3px solid var(--right)}
.tile.wrong img{border-color:var(--wrong);border-style:dashed}
.tile b{color:var(--right)}
.tile.wrong b{color:var(--wrong)}
.tile small{display:block;color:var(--quiet);font-size:.78rem}
.strip{max-width:none;margin:1rem 0}
.strip div{display:grid;grid-template-columns:repeat(5,minmax(0,9rem));gap:.4rem}
.strip img{display:block;width:100%;aspect-ratio:1;border-radius:.3rem}
.trio div{grid-template-columns:repeat(3,minmax(0,12rem))}
.trio img{aspect-ratio:auto}
.strip .map{image-rendering:pixelated}
details{border-bottom:1px solid var(--line)}
summary{cursor:pointer;padding:.55rem 0}
summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
pre{background:var(--panel);border-radius:.4rem;padding:.8rem 1rem;margin:.25rem 0 1rem;white-space:pre-wrap;
overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.3rem 1.5rem;margin:1rem 0;font-size:.9rem}
dt{color:var(--quiet)}
dd{margin:0}
footer{margin-top:3rem;color:var(--quiet);font-size:.85rem}
@media screen and (max-width:44rem){
main{padding:1.5rem 1.1rem 3rem}
h1{font-size:1.6rem}
h2{margin-top:2.5rem}
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table,tbody,td{display:block}
tr{display:grid;grid-template-columns:repeat(auto-fit,minmax(6.2rem,1fr));gap:.5rem .9rem;padding:.9rem 0;
border-bottom:1px solid var(--line)}
tr.best{box-shadow:-.6rem 0 0 var(--panel),.6rem 0 0 var(--panel);background:var(--panel)}
tr.best td:first-child,tr.best td:last-child{box-shadow:none}
td,td.n{border:0;padding:0;text-align:left;white-space:normal;min-width:0}
td::before{content:attr(data-label);display:block;color:var(--quiet);font-size:.75rem}
td:first-child,td:has(code){grid-column:1/-1}
td:first-child::before{content:none}
.tiles{grid-template-columns:repeat(4,minmax(0,1fr));gap:1rem .7rem}
dl{display:block}
dd{margin-bottom:.5rem}
}
@media print{
:root{--page:#fff;--panel:#f5f7f9;--ink:#000;--quiet:#444;--line:#ccc;--accent:#0b5c94;--bar:#7fb2dc;--mark:#0b3d66;
--control:#8a8f96;--right:#0a6640;--wrong:#a3341b;color-scheme:light}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font-size:10.5pt}
main{max-width:none;padding:0}
h2{margin-top:1.5rem}
table{font-size:8pt}
td:first-child{min-width:8rem}
.charts{grid-template-columns:1fr 1fr;gap:1rem 2rem}
.tiles{grid-template-columns:repeat(8,minmax(0,1fr));gap:.6rem}
.tile{font-size:8pt}
td small,.tile small{font-size:7pt}
figure,tr,.tile,.facts li{break-inside:avoid}
h2,h3{break-after:avoid}
}
"""

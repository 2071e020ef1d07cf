// A list of which only the rows that are seen are in the page, however many there are. Arrow keys move in it, Enter opens a
// row.

const MARGIN = 6;

class List {
  // `columns` are [key, word, class]; `row` makes the cells of a row once, and gives a function that fills them.
  constructor(container, { label, columns, row, opened, sorted, heights }) {
    Object.assign(this, { columns, row, opened, heights, items: [], focus: 0, sort: null, pool: [] });
    this.head = make("div", { class: "list-head list-row", role: "row" });
    for (const [key, word, kind] of columns) {
      const cell = make("div", { role: "columnheader", class: kind });
      const button = make("button", { type: "button", text: word, onclick: () => sorted?.(key) });
      cell.append(sorted && key ? button : make("span", { text: word }));
      this.head.append(cell);
    }
    this.body = make("div", { class: "list-body", role: "rowgroup" });
    this.scroller = make("div", {
      class: "list-scroll",
      role: "grid",
      tabindex: "0",
      "aria-label": label,
      onscroll: () => this.drawSoon(),
      onkeydown: (event) => this.key(event),
      onclick: (event) => this.click(event),
      onfocus: () => this.drawSoon(),
      onblur: () => this.drawSoon(),
    }, make("div", { role: "rowgroup", class: "list-heads" }, this.head), this.body);
    this.empty = make("p", { class: "empty" });
    container.append(this.scroller, this.empty);
    new ResizeObserver(() => this.drawSoon()).observe(this.scroller);
  }

  get height() {
    return matchMedia("(max-width: 700px)").matches ? this.heights.narrow : this.heights.wide;
  }

  set(items, emptyWords, sort) {
    this.items = items;
    this.focus = Math.min(this.focus, Math.max(items.length - 1, 0));
    setAttribute(this.scroller, "aria-rowcount", items.length + 1);
    setText(this.empty, items.length === 0 ? emptyWords : "");
    this.empty.hidden = items.length > 0;
    if (sort) {
      this.columns.forEach(([key], number) => {
        const order = sort.descending ? "descending" : "ascending";
        setAttribute(this.head.children[number], "aria-sort", key && key === sort.key ? order : null);
      });
    }
    this.drawNow();
  }

  drawSoon() {
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    this.isDrawing = false;
    const height = this.height;
    const whole = `${this.items.length * height}px`;
    if (this.body.style.height !== whole) this.body.style.height = whole;
    const top = Math.max(this.scroller.scrollTop - this.head.offsetHeight, 0);
    const first = Math.max(Math.floor(top / height) - MARGIN, 0);
    const seen = Math.ceil(this.scroller.clientHeight / height) + 2 * MARGIN;
    const last = Math.min(first + seen, this.items.length);
    const isFocused = document.activeElement === this.scroller;
    for (let number = first; number < last; number += 1) {
      const at = number - first;
      if (!this.pool[at]) this.pool[at] = this.makeRow();
      const { element, fillRow } = this.pool[at];
      element.hidden = false;
      const place = `translateY(${number * height}px)`;
      if (element.style.transform !== place) element.style.transform = place;
      setAttribute(element, "aria-rowindex", number + 2);
      setAttribute(element, "data-row", number);
      const isCurrent = number === this.focus;
      setAttribute(element, "data-current", isCurrent && isFocused ? "" : null);
      setAttribute(element, "id", isCurrent ? `${this.body.parentNode.parentNode.id}-current` : null);
      fillRow(this.items[number], element);
    }
    for (let at = Math.max(last - first, 0); at < this.pool.length; at += 1) {
      this.pool[at].element.hidden = true;
      this.pool[at].element.removeAttribute("id");
    }
    const isThere = this.focus >= first && this.focus < last;
    setAttribute(this.scroller, "aria-activedescendant", isThere && isFocused ? `${this.scroller.parentNode.id}-current` : null);
  }

  makeRow() {
    const cells = this.columns.map(([, , kind]) => make("div", { role: "gridcell", class: kind }));
    const element = make("div", { class: "list-row", role: "row" }, ...cells);
    this.body.append(element);
    return { element, fillRow: this.row(cells) };
  }

  key(event) {
    if (event.target !== this.scroller) return;
    const page = Math.max(Math.floor(this.scroller.clientHeight / this.height) - 2, 1);
    const last = this.items.length - 1;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -last, End: last };
    if (event.key in steps && last >= 0) {
      event.preventDefault();
      const to = event.key === "Home" ? 0 : event.key === "End" ? last : this.focus + steps[event.key];
      this.moveTo(Math.min(Math.max(to, 0), last));
    } else if (event.key === "Enter" && this.items[this.focus]) {
      this.opened?.(this.items[this.focus]);
    }
  }

  moveTo(number) {
    this.focus = number;
    const top = number * this.height;
    const seen = this.scroller.clientHeight - this.head.offsetHeight - this.height;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top > this.scroller.scrollTop + seen) this.scroller.scrollTop = top - seen;
    this.drawNow();
  }

  click(event) {
    const number = origin(event, "data-row");
    if (number === null || number === undefined) return;
    this.focus = Number(number);
    this.drawNow();
    this.opened?.(this.items[this.focus]);
  }
}

// The puzzles that the page knows: how a board is typed, shown, checked and turned.
// Tokens are those of hrm.data: 0 is padding.

export function taskOf(about) {
  const make = { sudoku: (one) => new Sudoku(one), maze: (one) => new Maze(one) }[about.task];
  if (!make) throw new Error(`${about.name}: the page shows Sudokus and mazes, not ${about.task}`);
  return make(about);
}

const place = (task, index) => `row ${Math.floor(index / task.size) + 1} column ${(index % task.size) + 1}`;

function shuffled(values) {
  const result = [...values];
  for (let last = result.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [result[last], result[other]] = [result[other], result[last]];
  }
  return result;
}

class Sudoku {
  constructor(about) {
    this.size = about.rows;
    [this.boxRows, this.boxColumns] = about.box;
    this.cells = this.size * this.size;
    this.blank = 1;
    this.symbols = about.symbols;
    this.digits = about.characters; // by token
    this.keys = Array.from({ length: this.size }, (_, index) => ({ key: this.digits[index + 2], token: index + 2 }));
    this.eraser = 1;
    this.units = this.#units();
    this.unitsOf = Array.from({ length: this.cells }, (_, cell) => this.units.filter((unit) => unit.cells.includes(cell)));
    this.hint = `${this.cells} digits; . or 0 is a blank`;
  }

  #units() {
    const units = [];
    const numbers = [...Array(this.size).keys()];
    for (const row of numbers) units.push({ name: `row ${row + 1}`, cells: numbers.map((column) => row * this.size + column) });
    for (const column of numbers) units.push({ name: `column ${column + 1}`, cells: numbers.map((row) => row * this.size + column) });
    const across = this.size / this.boxColumns;
    for (const box of numbers) {
      const top = Math.floor(box / across) * this.boxRows, left = (box % across) * this.boxColumns;
      const cells = numbers.map((at) => (top + Math.floor(at / this.boxColumns)) * this.size + left + (at % this.boxColumns));
      units.push({ name: `box ${box + 1}`, cells });
    }
    return units;
  }

  // Tokens of a text, or an error with the reason.
  parse(text) {
    const letters = [...text.replace(/[|\-+=│─┼ \t\r\n,;]/g, "")];
    if (letters.length !== this.cells)
      throw new Error(`This has ${letters.length} cells; a ${this.size} × ${this.size} Sudoku has ${this.cells}. Write digits, and . or 0 for a blank.`);
    return letters.map((letter, index) => {
      if (!(letter in this.symbols))
        throw new Error(`“${letter}” at ${place(this, index)} is not a digit from 1 to ${this.digits[this.size + 1]}; . or 0 is a blank.`);
      return this.symbols[letter];
    });
  }

  text(token) { return token > 1 ? this.digits[token] : ""; }
  label(token) { return this.text(token) || "blank"; }
  format(tokens) { return tokens.map((token) => this.text(token) || ".").join(""); }
  kind(token, given) { return given ? "given" : token > 1 ? "filled" : "blank"; }
  isGiven(token) { return token > 1; }
  edges(cell) {
    const row = Math.floor(cell / this.size), column = cell % this.size;
    return { top: row % this.boxRows === 0, left: column % this.boxColumns === 0 };
  }
  put(tokens, cell, token) { const next = [...tokens]; next[cell] = token; return next; }

  // The cells whose digit is twice in a row, column or box, with the reason.
  conflicts(tokens) {
    const cells = new Set();
    let reason = null;
    for (const unit of this.units)
      for (const digit of new Set(unit.cells.map((cell) => tokens[cell]))) {
        const same = unit.cells.filter((cell) => tokens[cell] === digit);
        if (digit > 1 && same.length > 1) {
          same.forEach((cell) => cells.add(cell));
          reason ??= `${unit.name} has ${this.digits[digit]} twice`;
        }
      }
    return { cells, reason };
  }

  // Why a board cannot be given to the model: { cells, reason, note }; a note alone does not forbid it.
  examine(tokens) {
    const { cells, reason } = this.conflicts(tokens);
    if (reason) return { cells, reason: `This board has no solution: ${reason}.` };
    const candidates = tokens.map((token) => (token > 1 ? 1 << (token - 2) : (1 << this.size) - 1));
    const wrong = this.#propagate(candidates);
    if (wrong) return { cells: new Set(wrong.cells), reason: `This board has no solution: ${wrong.reason}.` };
    const { count, complete } = this.#count(candidates, 2, { left: 4000 });
    if (count === 0 && complete) return { cells, reason: "This board has no solution: every way to fill it ends in a contradiction." };
    if (count > 1) return { cells, reason: null, note: "This board has several solutions; a Sudoku has one." };
    return { cells, reason: null };
  }

  // Remove candidates until nothing changes; the contradiction, if there is one. Changes its argument.
  #propagate(candidates) {
    const single = (mask) => mask && !(mask & (mask - 1));
    for (let changed = true; changed; ) {
      changed = false;
      for (let cell = 0; cell < this.cells; cell++) {
        if (!candidates[cell]) return { cells: [cell], reason: `no digit fits at ${place(this, cell)}` };
        if (!single(candidates[cell])) continue;
        for (const unit of this.unitsOf[cell])
          for (const other of unit.cells)
            if (other !== cell && candidates[other] & candidates[cell]) {
              candidates[other] &= ~candidates[cell];
              changed = true;
              if (!candidates[other]) return { cells: [other], reason: `no digit fits at ${place(this, other)}` };
            }
      }
      for (const unit of this.units)
        for (let digit = 0; digit < this.size; digit++) {
          const fits = unit.cells.filter((cell) => candidates[cell] & (1 << digit));
          if (!fits.length) return { cells: unit.cells, reason: `${unit.name} has no place for ${this.digits[digit + 2]}` };
          if (fits.length === 1 && candidates[fits[0]] !== 1 << digit) {
            candidates[fits[0]] = 1 << digit;
            changed = true;
          }
        }
    }
    return null;
  }

  // Number of solutions up to most; the search ends when the budget of positions is used.
  #count(candidates, most, budget) {
    const bits = (mask) => mask.toString(2).replaceAll("0", "").length;
    let best = -1;
    candidates.forEach((mask, cell) => {
      if (bits(mask) > 1 && (best < 0 || bits(mask) < bits(candidates[best]))) best = cell;
    });
    if (best < 0) return { count: 1, complete: true };
    let count = 0, complete = true;
    for (let digit = 0; digit < this.size && count < most; digit++) {
      if (!(candidates[best] & (1 << digit))) continue;
      if (budget.left-- <= 0) return { count, complete: false };
      const next = [...candidates];
      next[best] = 1 << digit;
      if (this.#propagate(next)) continue;
      const inner = this.#count(next, most - count, budget);
      count += inner.count;
      complete &&= inner.complete;
    }
    return { count, complete };
  }

  // Null if the answer solves the puzzle, else why not.
  check(puzzle, answer) {
    const changed = answer.findIndex((token, cell) => puzzle[cell] > 1 && token !== puzzle[cell]);
    if (changed >= 0) return `the clue at ${place(this, changed)} was changed`;
    const blank = answer.findIndex((token) => token < 2);
    if (blank >= 0) return `${place(this, blank)} is blank`;
    return this.conflicts(answer).reason;
  }
  wrong(puzzle, answer) {
    const { cells } = this.conflicts(answer);
    answer.forEach((token, cell) => { if (puzzle[cell] > 1 && token !== puzzle[cell]) cells.add(cell); });
    return cells;
  }

  // A random renaming of the digits: the same puzzle in other words.
  symmetry() {
    const digits = shuffled(this.keys.map((one) => one.token));
    const there = [0, 1, ...digits], back = [];
    there.forEach((token, old) => { back[token] = old; });
    return { there: (tokens) => tokens.map((token) => there[token]), back: (tokens) => tokens.map((token) => back[token]) };
  }
}

const WALL = 1, FREE = 2, START = 3, GOAL = 4, PATH = 5;

class Maze {
  constructor(about) {
    this.size = about.rows;
    this.cells = this.size * this.size;
    this.blank = FREE;
    this.symbols = about.symbols;
    this.keys = [
      { key: "#", name: "wall", token: WALL },
      { key: ".", name: "free", token: FREE },
      { key: "S", name: "start", token: START },
      { key: "G", name: "goal", token: GOAL },
    ];
    this.eraser = FREE;
    this.hint = `${this.size} rows of ${this.size}: # is a wall, . is free, S the start, G the goal`;
  }

  parse(text) {
    const rows = text.split(/\r?\n/).filter((row) => row.length);
    const letters = [...(rows.length === 1 ? rows[0] : rows.map((row) => row.padEnd(this.size)).join(""))];
    if (letters.length !== this.cells)
      throw new Error(`This has ${letters.length} cells; a maze of ${this.size} × ${this.size} has ${this.cells}.`);
    return letters.map((letter, index) => {
      if (!(letter in this.symbols))
        throw new Error(`“${letter}” at ${place(this, index)} is none of # (wall), . (free), S (start) and G (goal).`);
      return this.symbols[letter] === PATH ? FREE : this.symbols[letter];
    });
  }

  text(token) { return { [START]: "S", [GOAL]: "G", [PATH]: "•" }[token] ?? ""; }
  label(token) { return ["padding", "wall", "free", "start", "goal", "path"][token]; }
  format(tokens) { return tokens.map((token) => "?#.SGo"[token]).join(""); }
  kind(token) { return ["blank", "wall", "free", "start", "goal", "path"][token]; }
  isGiven() { return false; }
  edges() { return { top: false, left: false }; }
  put(tokens, cell, token) { // there is one start, and one goal
    const next = tokens.map((old) => ((token === START || token === GOAL) && old === token ? FREE : old));
    next[cell] = token;
    return next;
  }

  #steps(allowed, from) {
    const steps = new Array(this.cells).fill(-1), queue = [from];
    steps[from] = 0;
    for (const cell of queue) {
      const column = cell % this.size;
      for (const next of [cell - this.size, cell + this.size, column ? cell - 1 : -1, column < this.size - 1 ? cell + 1 : -1])
        if (next >= 0 && next < this.cells && steps[next] < 0 && allowed(next)) {
          steps[next] = steps[cell] + 1;
          queue.push(next);
        }
    }
    return steps;
  }

  examine(tokens) {
    const none = new Set();
    for (const [token, name] of [[START, "start, S"], [GOAL, "goal, G"]]) {
      const count = tokens.filter((one) => one === token).length;
      if (count !== 1) return { cells: none, reason: `A maze needs one ${name}; this one has ${count || "none"}.` };
    }
    const start = tokens.indexOf(START), goal = tokens.indexOf(GOAL);
    if (this.#steps((cell) => tokens[cell] !== WALL, start)[goal] < 0)
      return { cells: new Set([start, goal]), reason: "This maze has no solution: there is no way from S to G." };
    return { cells: none, reason: null };
  }

  check(puzzle, answer) {
    const wrong = [...this.wrong(puzzle, answer)];
    if (wrong.length) return `${place(this, wrong[0])} is ${this.label(answer[wrong[0]])} where the maze has ${this.label(puzzle[wrong[0]])}`;
    const start = puzzle.indexOf(START), goal = puzzle.indexOf(GOAL);
    const shortest = this.#steps((cell) => puzzle[cell] !== WALL, start)[goal];
    const through = this.#steps((cell) => cell === goal || answer[cell] === PATH, start)[goal];
    const marked = answer.filter((token) => token === PATH).length;
    if (through < 0) return "the path does not connect S and G";
    if (through > shortest) return `the path takes ${through} steps, the shortest ${shortest}`;
    if (marked !== through - 1) return `${marked - through + 1} cells are marked that are not on the path`;
    return null;
  }
  wrong(puzzle, answer) {
    const open = (token) => token === FREE || token === PATH;
    return new Set([...answer.keys()].filter((cell) => (open(puzzle[cell]) ? !open(answer[cell]) : answer[cell] !== puzzle[cell])));
  }

  // One of the eight turns and reflections of the square.
  symmetry() {
    const size = this.size, turn = Math.floor(Math.random() * 8), source = [];
    for (let row = 0; row < size; row++)
      for (let column = 0; column < size; column++) {
        let [y, x] = turn & 4 ? [column, row] : [row, column];
        if (turn & 1) y = size - 1 - y;
        if (turn & 2) x = size - 1 - x;
        source.push(y * size + x);
      }
    const back = (tokens) => { const result = []; source.forEach((from, to) => { result[from] = tokens[to]; }); return result; };
    return { there: (tokens) => source.map((from) => tokens[from]), back };
  }
}

'use strict';
const $ = (what, where = document) => where.querySelector(what);
const $$ = (what, where = document) => [...where.querySelectorAll(what)];
const made = (tag, values = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children);
  return element;
};
const search = $('.search input');
const chat = $('form.chat');

// Keyboard: / searches, arrows go through the pictures, Esc leaves.
addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const at = document.activeElement;
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName)) {
    if (event.key === 'Escape') at.blur();
    if (event.key === 'ArrowDown' && at === search && $('.grid .tile')) {
      event.preventDefault();
      $('.grid .tile').focus();
    }
    return;
  }
  if (event.key === '/' && search) {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key.startsWith('Arrow') && at.matches('.tile')) {
    move(at, event);
  } else if (event.key.startsWith('Arrow') && $('.picture')) {
    const link = {ArrowLeft: $('.previous'), ArrowRight: $('.next')}[event.key];
    if (link && !link.hidden) link.click();
  } else if (event.key.startsWith('Arrow') && at === document.body && $('#results .tile')) {
    event.preventDefault();
    $('#results .tile').focus();
  } else if (event.key === 'Escape' && $('.picture')) {
    if (!$('.back').hidden) $('.back').click();
  } else if (event.key === 'Escape') {
    at.blur();
  }
});

function move(tile, event) {
  const all = $$('.tile', tile.closest('.grid'));
  const columns = getComputedStyle(tile.closest('.grid')).gridTemplateColumns.split(' ').length;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  const place = all.indexOf(tile) + step;
  event.preventDefault();
  if (all[place]) all[place].focus();
  else if (place < 0 && event.key === 'ArrowUp') search.focus();
}

// Pictures: more of them as one comes to the end, and which one was before and after.
const more = $('.more a');
if (more) {
  const results = $('#results');
  const watch = new IntersectionObserver(async entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    watch.unobserve(more);
    try {
      const answer = await fetch(more.href);
      if (!answer.ok) return;
      const next = new DOMParser().parseFromString(await answer.text(), 'text/html');
      results.append(...$$('#results > li', next));
      const link = $('.more a', next);
      if (!link) return more.parentNode.remove();
      more.href = link.href;
      watch.observe(more);
    } catch {}  // the link is still there
  }, {rootMargin: '1500px'});
  watch.observe(more);
}
addEventListener('click', event => {
  const tile = event.target.closest?.('.tile');
  if (!tile) return;
  const links = $$('.tile', tile.closest('.grid')).map(link => link.getAttribute('href'));
  const from = $('.picture') ? JSON.parse(sessionStorage.from || '""') : location.pathname + location.search;
  try {
    sessionStorage.links = JSON.stringify(links);
    sessionStorage.from = JSON.stringify(from);
  } catch {}  // too many: one does without
});
if ($('.picture')) {
  const links = JSON.parse(sessionStorage.links || '[]');
  const place = links.indexOf(location.pathname + location.search);
  const lead = (link, href) => Object.assign(link, {href, hidden: !href});
  if (place >= 0) {
    lead($('.previous'), links[place - 1] || '');
    lead($('.next'), links[place + 1] || '');
    lead($('.back'), JSON.parse(sessionStorage.from || '""'));
    for (const link of [$('.previous'), $('.next')])
      link.onclick = event => { event.preventDefault(); location.replace(link.href); };
  }
}

// A picture that is chosen, dropped or pasted is searched by, or goes along with a message.
const SIDE = 1600;
const chosen = $('.upload input');
const searchBy = async file => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([await shrunk(file)], file.name, {type: file.type}));
  chosen.files = transfer.files;
  chosen.form.submit();
};
if (chosen) chosen.onchange = () => { if (chosen.files.length) searchBy(chosen.files[0]); };
async function shrunk(file) {  // what is no larger than models look at
  try {
    const bitmap = await createImageBitmap(file);
    const scale = SIDE / Math.max(bitmap.width, bitmap.height);
    if (scale >= 1) return file;
    const canvas = new OffscreenCanvas(Math.ceil(bitmap.width * scale), Math.ceil(bitmap.height * scale));
    canvas.getContext('2d').drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob({type: 'image/jpeg', quality: .9});
  } catch {
    return file;  // what the browser cannot open the service may
  }
}
const take = files => {
  const pictures = [...files].filter(file => file.type.startsWith('image/') || /\.hei[cf]$/i.test(file.name));
  if (!pictures.length) return false;
  if (chat?.matches('.whole')) {
    pictures.forEach(attach);
  } else if (chosen) {
    searchBy(pictures[0]);
  }
  return true;
};
const drop = $('.drop');
addEventListener('dragover', event => {
  if (!event.dataTransfer.types.includes('Files')) return;
  event.preventDefault();
  drop.hidden = false;
});
addEventListener('dragleave', event => { if (!event.relatedTarget) drop.hidden = true; });
addEventListener('drop', event => {
  drop.hidden = true;
  if (event.dataTransfer.files.length) {
    event.preventDefault();
    take(event.dataTransfer.files);
  }
});
addEventListener('paste', event => { if (take(event.clipboardData.files)) event.preventDefault(); });

// Questions. A picture of the index goes by the id of its record, another one as a data URI.
let talk = [], running = null;

function attach(file) {
  const image = made('img', {alt: file.name, src: URL.createObjectURL(file)});
  addAttached(made('li', {file}), image, file.name);
}
function addAttached(item, image, name) {
  const remove = made('button', {type: 'button', className: 'remove', textContent: '×'});
  remove.setAttribute('aria-label', `Remove ${name}`);
  item.append(image, remove);
  $('.attached').append(item);
  $('[name=question]', chat).focus();
}
async function dataUri(file) {
  const data = await shrunk(file);
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.replace(/^data:(?!image)[^;,]*/, 'data:image/heic'));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(data);
  });
}
function said(role, text) {
  const body = made('span', {textContent: text});
  const message = made('div', {className: `message ${role}`}, body);
  $('.log', chat).append(message);
  if (chat.matches('.whole')) message.scrollIntoView({block: 'nearest'});
  return body;
}
function settings() {
  const form = new FormData(chat), body = {model: form.get('model')};
  for (const name of ['max_tokens', 'temperature', 'top_p', 'seed'])
    if (form.get(name)) body[name] = Number(form.get(name));
  const system = form.get('system').trim();
  return [body, system ? [{role: 'system', content: system}] : []];
}
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts)
      if (part.startsWith('data: ') && part !== 'data: [DONE]') yield JSON.parse(part.slice(6));
  }
}
async function ask(text, urls) {
  const [body, system] = settings();
  const answer = said('assistant', '');
  answer.className = 'waiting';
  running = new AbortController();
  busy(true);
  try {
    const pictures = (await Promise.all(urls)).map(url => ({type: 'image_url', image_url: {url}}));
    const question = {role: 'user', content: [...pictures, {type: 'text', text}]};
    const response = await fetch('/v1/chat/completions', {
      method: 'POST',
      headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({...body, stream: true, messages: [...system, ...talk, question]}),
      signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      answer.textContent += event.choices[0]?.delta.content ?? '';
      for (const warning of event.warnings ?? [])
        answer.parentNode.append(made('small', {className: 'soft', textContent: warning}));
      if (event.choices[0]?.finish_reason === 'length')
        answer.parentNode.append(made('small', {className: 'soft', textContent: 'cut: see Settings, longest answer'}));
    }
    talk.push(question, {role: 'assistant', content: answer.textContent});
  } catch (error) {
    const text = error.name === 'AbortError' ? 'Cancelled.' : error.message;
    answer.parentNode.append(made('small', {className: 'soft', textContent: text}));
    if (error.name !== 'AbortError') answer.parentNode.classList.add('error');
  } finally {
    answer.className = '';
    running = null;
    busy(false);
  }
}
function busy(is) {
  $('.cancel', chat).hidden = !is;
  $('.line button:not([type])', chat).hidden = is;
}
if (chat) {
  const question = $('[name=question]', chat);
  const whole = chat.matches('.whole');
  $('.cancel', chat).onclick = () => running?.abort();
  question.onkeydown = event => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    chat.requestSubmit();
  };
  chat.onsubmit = async event => {
    event.preventDefault();
    const text = question.value.trim();
    if (running || !text) return;
    question.value = '';
    if (!whole) {
      talk = [];  // each question about one picture stands alone
      $('.log', chat).replaceChildren();
      said('user', text);
      return ask(text, [chat.dataset.picture]);
    }
    $('.welcome').hidden = true;
    const items = $$('.attached li');
    const shown = items.map(item => $('img', item));
    const body = said('user', text);
    if (shown.length) body.before(made('span', {className: 'pictures'}, ...shown));
    $('.attached').replaceChildren();
    await ask(text, items.map(item => item.file ? dataUri(item.file) : item.dataset.picture));
  };
  if (whole) {
    $('.attached').onclick = event => { if (event.target.matches('.remove')) event.target.parentNode.remove(); };
    for (const button of $$('.examples button'))
      button.onclick = () => {
        const item = made('li');
        item.dataset.picture = button.dataset.picture;
        addAttached(item, $('img', button).cloneNode(), $('img', button).alt);
      };
    $('[name=file]', chat).onchange = event => {
      [...event.target.files].forEach(attach);
      event.target.value = '';
    };
    $('.anew', chat).onclick = () => {
      running?.abort();
      talk = [];
      $('.log', chat).replaceChildren();
      $('.welcome').hidden = false;
    };
  }
}
// Duplicates: how much is ticked; and the page anew when the search has ended.
const copies = $('form.copies');
if (copies) {
  const count = () => {
    const ticked = $$('[name=go]:checked', copies);
    const bytes = ticked.reduce((sum, box) => sum + Number(box.dataset.bytes), 0);
    $('output', copies).textContent = `${ticked.length} ticked, ${(bytes / 1e6).toFixed(1)} MB`;
  };
  copies.onchange = count;
  count();
}
if ($('[data-running]')) {
  const look = setInterval(async () => {
    try {
      const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), 'text/html');
      if ($('[data-running]', page)) return;
      clearInterval(look);
      location.reload();
    } catch {}  // the service may come back
  }, 2000);
}

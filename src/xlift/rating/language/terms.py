"""English terms that other languages borrow as they are: no reader blames them."""

from __future__ import annotations

# Terms that many languages write as English does, in any script.
INTERNATIONAL = frozenset(
    "ai api app apps blog blogs bot bug chat chatbot click cloud cookie cookies design desktop download email emails "
    "feedback firewall firmware gps hacker hardware hashtag html internet iphone laptop layout link links login "
    "manager marketing mail media newsletter offline online output input podcast podcasts "
    "password performance pixel pc qubit qubits router routers scanner score server site sites smartphone "
    "smartphones software spam startup startups stream streaming stress tablet team teams test tests token tokens "
    "tutorial upload video videos web webinar website websites wifi wi fi workshop workshops business avant garde "
    "jazz rock pop hip hop rap punk blues show shows band hit hits fan fans film star stars hobby hobbies sport "
    "start up ups yoga fitness jogging stretching squat squats crunch crunches smoothie smoothies sandwich pizza "
    "pasta burger ketchup snack snacks shampoo jeans boom boomer trend trends trendy designer designers model models "
    "logo logos pin faq selfie selfies emoji emojis widget widgets plugin plugins dashboard blockchain bitcoin backend "
    "frontend framework frameworks malware ransomware phishing vlog tsv csv json pvc led usb tbsp tsp oz lb lbs "
    "gal ft yd mph psi "
    "vs etc et al de la le el il los las van von der den da di du del della en ex per cm km kg mm ml mg".split()
)


# Terms of a trade that are borrowed as they are where the script is Latin.
TERMS = frozenset(
    "machine learning deep cloud computing big data diffusion stable science trading running meeting "
    "report focus budget weekend training trainings "
    "freelance freelancer coworking lockdown brunch influencer brand branding target deadline staff trekking shopping "
    "smart checklist networking mindfulness crowdfunding ticket outfit retriever terrier bulldog beagle husky disk "
    "bestseller "
    # of programs and data
    "coding coder debugging clustering cluster clusters tuning sharding shard shards subset framework backup cache "
    "dataset datasets prompt prompts feature features frontend backend fullstack blockchain crypto wallet wallets "
    "mining analytics benchmark benchmarks pipeline pipelines node nodes inputs outputs overfitting dropout "
    "transformer transformers embedding embeddings phishing malware ransomware hosting scraping screenshot "
    # of firms and markets
    "insight insights storytelling briefing brainstorming outsourcing benchmarking crowdsourcing fundraising "
    "copywriting copywriter ghostwriter ghostwriting freelancing remarketing funnel lead leads banner banners planner "
    "stakeholder stakeholders stakeholding skill skills coaching coach mentoring recruiter recruiting onboarding "
    "turnover burnout leasing rating broker hedging futures swap spread cashback ecommerce retail healthcare "
    "automotive wayfinding followers follower "
    # of sports, food, clothes and pastimes
    "quarterback linebacker playoff playoffs dribbling pressing sprint plank burpees burpee deadlift crossfit pilates "
    "cardio cruiser touring scooter skateboard surf surfing snowboard rafting camping makeup eyeliner highlighter "
    "dressing topping toppings cupcake cupcakes muffin muffins brownie brownies cheesecake pancake pancakes cocktail "
    "cocktails sneaker sneakers hoodie blazer leggings vintage streetwear relax indoor outdoor playlist gameplay "
    "thriller spoiler remake reboot casting sitcom soundtrack trailer gaming gamer gamers streamer streamers youtuber "
    "youtubers blogger bloggers vlogger podcaster tiktoker cosplay fandom "
    # of clothes, food and daily life
    "fashion look looks glamour lifestyle shorts spray peeling styling stylist piercing bestie crush ghosting "
    "hangover gadget gadgets burger burgers cheeseburger hotdog nuggets smoothies milkshake catering airbag airbags "
    "camper suv pickup carsharing "
    # of sports and health
    "bodybuilding powerlifting spinning stepper kettlebell penalty dribbling doping rugby golf hockey bowling skate "
    "kitesurf windsurf spa wellness detox "
    # of firms
    "brief briefs pitch pitches meeting meetings slide slides template templates roadmap roadmaps sprint sprints "
    "backlog scrum feedbacks manager managers management leadership headhunter freelancers remote hub hubs holding "
    "dumping hype buzz packaging label labels sponsor sponsors sponsoring sponsorship fundraiser crowdfunder "
    "merchandising newsletter mailing benchmark boom shopper outlet showroom showrooms "
    # of work and leisure
    "policy policies producer producers feeling feelings cash delivery deal deals celebrity celebrities partner "
    "partners highlight highlights event events party copyright cover covers setup printer printers timing timer "
    "timers trainer trainers quiz parking leader leaders teenager teenagers clip clips subscriber subscribers sale "
    "sales call calls user users award awards likes "
    # of programs and data
    "log logs script scripts hash release releases deploy deployment deployments container containers kernel "
    "rendering sprite bitmap thumbnail touchscreen touchpad trackpad tweet tweets retweet post posts followers story "
    "stories reel reels guest guests live feed hater haters troll trolls meme memes chatbots login logout browser "
    "browsers seed push pull commit merge fork rollback kickoff".split()
)

# Terms of two and more words, whose words alone would be blamed.
_PHRASES = frozenset(
    phrase.strip()
    for phrase in (
        # of programs and data
        "machine learning, deep learning, reinforcement learning, transfer learning, supervised learning, "
        "unsupervised learning, federated learning, few shot, zero shot, neural network, neural networks, data "
        "mining, data science, data scientist, data scientists, data analyst, data warehouse, data lake, big data, "
        "text mining, web scraping, decision tree, decision trees, random forest, random forests, gradient "
        "boosting, k means, regression analysis, predictive analytics, fine tuning, fine tune, fine tuned, merge "
        "sort, quick sort, bubble sort, use case, use cases, user story, user stories, user friendly, user "
        "experience, user interface, real time, open source, closed source, low code, no code, on premise, on "
        "premises, cloud computing, edge computing, cloud native, back end, front end, full stack, pull request, "
        "code review, unit test, unit tests, load balancer, load balancing, smart contract, smart contracts, smart "
        "home, smart city, smart watch, internet of things, text to image, text to speech, speech to text, end to "
        "end, peer to peer, point to point, step by step, plug and play, state of the art, skeleton based, cloud "
        "based, rule based, web based, event driven, data driven, open world, computer vision, natural language "
        "processing, black box, white box, customer experience, face id, touch id, deep fake, hash table, linked "
        "list, "
        # of firms and markets
        "content marketing, time to market, go to market, bullet point, bullet points, content creator, content "
        "creators, digital marketing, email marketing, influencer marketing, social media, social media manager, "
        "call to action, landing page, landing pages, lead generation, search engine, search engine optimization, "
        "pay per click, cost per click, key performance indicator, key performance indicators, business plan, "
        "business model, business intelligence, business angel, business angels, business to business, case study, "
        "case studies, best practice, best practices, success story, success stories, success rate, brand "
        "awareness, customer service, customer care, customer relationship management, customer journey, supply "
        "chain, supply chain management, value chain, due diligence, private equity, venture capital, hedge fund, "
        "hedge funds, stock options, call option, call options, put option, put options, options trading, day "
        "trading, swing trading, option trading, in the money, at the money, out of the money, stop loss, take "
        "profit, bull market, bear market, stock market, cash flow, break even, cost benefit, trade off, trade "
        "offs, win win, know how, think tank, think tanks, project manager, project management, product manager, "
        "product owner, scrum master, time management, risk management, quality assurance, quality control, team "
        "building, team leader, team work, problem solving, critical thinking, design thinking, soft skill, soft "
        "skills, hard skill, hard skills, work life balance, home office, part time, full time, full service, all "
        "in one, hands on, peer review, peer reviewed, trial and error, graphic designer, web designer, web "
        "developer, ghost writer, ghost writing, copy writer, copy writing, machine learning engineer, software "
        "engineer, software engineering, start up, start ups, green economy, fair trade, carbon footprint, black "
        "friday, credit score, credit card, financial planner, wealth management, "
        # of sports, food, clothes and pastimes
        "bench press, shoulder press, leg press, leg raise, leg raises, push up, push ups, sit up, sit ups, pull "
        "up, pull ups, jumping jacks, mountain climbers, mountain climber, mountain bike, warm up, cool down, cheat "
        "day, cheat meal, meal prep, meal replacement, personal trainer, fast food, street food, finger food, "
        "comfort food, whole grain, dry rub, french press, pour over, cold brew, pisco sour, ice cream, gluten "
        "free, dual sport, all terrain, off road, test drive, pole position, home run, touch down, free kick, body "
        "building, body positivity, skin care, anti aging, make up, eye liner, crop top, t shirt, t shirts, street "
        "style, second hand, must have, science fiction, sci fi, fan fiction, found footage, stop motion, box "
        "office, blockbuster movie, plot twist, happy end, happy ending, cliff hanger, soap opera, reality show, "
        "talk show, late night, stand up, stand up comedy, live action, voice over, story telling, boy band, girl "
        "group, hip hop, indie rock, hard rock, heavy metal, single player, role playing, battle royale, golden "
        "retriever, border collie, city trip, road trip, check in, check out, check list, bed and breakfast, all "
        "inclusive, low cost, last minute, jet lag, greatest of all time, fair play, tie break, after work, after "
        "party, spin off, spin offs, duty free, self service, joint venture, car sharing, concept store, old school, "
        "dress code, open space, open air, low carb, best of, case by case, win win situation, black out, brain "
        "drain, fact check, fact checking, fake news, hate speech, body shaming, gap year, city break, food truck, "
        "food trucks, craft beer, pole dance, power bank, pop up, opt in, opt out, double opt in, cross selling, up "
        "selling, cold call, cold calls, marketing plan, content plan, content plans, content "
        "manager, content strategy, "
        # of work and leisure
        "best seller, best sellers, burn out, call center, call centers, call centre, check up, follow up, turn over, "
        "smart working, remote working, video call, video calls, night club, back up, mountain bike, mountain biking, "
        "happy hour, spending review, office boy, green pass, reality show, reality shows, public relations, trending "
        "topic, touch screen, community manager, community managers, push notification, push notifications, "
        # of dishes and drinks
        "irish coffee, beef wellington, apple crumble, apple pie, pulled pork, roast beef, club sandwich, hot dog, hot "
        "dogs, bubble tea, brown ale, pale ale, soft drink, soft drinks, chicken wings, carrot cake, "
        # of French, Latin, Italian, Spanish and others
        "joie de vivre, déjà vu, c est la vie, fin de siècle, raison d être, coup d état, je ne sais quoi, pièce de "
        "résistance, tour de force, crème brûlée, à la carte, hors d oeuvre, hors d œuvre, savoir faire, savoir "
        "vivre, enfant terrible, femme fatale, faux pas, film noir, art nouveau, art déco, haute couture, haute "
        "cuisine, bon appétit, bon voyage, carte blanche, esprit de corps, laissez faire, nouveau riche, papier "
        "mâché, en route, en masse, au pair, mise en place, mise en scène, sous vide, prix fixe, table d hôte, foie "
        "au lait, au gratin, au jus, à la mode, belle époque, bête noire, bon mot, crème de la crème, crème fraîche, "
        "cul de sac, double entendre, eau de toilette, eau de parfum, fait accompli, fleur de lis, idée fixe, petit "
        "four, petits fours, pied à terre, roman à clef, tête à tête, vis à vis, grand prix, café au lait, "
        "gras, pain au chocolat, coq au vin, boeuf bourguignon, bœuf bourguignon, cordon bleu, trompe l oeil, trompe "
        "l œil, noblesse oblige, carpe diem, quid pro quo, ad hoc, status quo, de facto, de jure, vice versa, "
        "curriculum vitae, alma mater, magnum opus, prima facie, mea culpa, ipso facto, pro bono, per se, persona non "
        "grata, dolce vita, dolce far niente, al dente, a cappella, prima donna, pasta alla norma, arroz con pollo, "
        "chili con carne, pico de gallo, dulce de leche, feng shui, tai chi, wabi sabi, "
        # two words that go together
        "rock and roll, drum and bass, rhythm and blues, research and development, mix and match, fish and chips, mac "
        "and cheese, copy and paste, cut and paste, drag and drop, search and replace, find and replace, before and "
        "after, black and white, hide and seek, stop and go, park and ride, click and collect, cash and carry, pump "
        "and dump, command and control, hack and slash, point and click, food and beverage, meet and greet, show and "
        "tell, back and forth, health and safety, terms and conditions, mergers and acquisitions, sense and respond, "
        "divide and conquer, lessons and carols, hit and run, ready and able, salt and pepper"
    ).split(",")
)


def _by_word() -> dict[str, list[tuple[int, list[str]]]]:
    """The terms that hold a word, each with the word's place in it."""
    found: dict[str, list[tuple[int, list[str]]]] = {}
    for phrase in _PHRASES:
        for place, word in enumerate(words := phrase.split()):
            found.setdefault(word, []).append((place, words))
    return found


_TERMS_WITH = _by_word()


# e.g. in_phrase(["la", "due", "diligence", "delle"], 2) → True
# e.g. in_phrase(["diligence"], 0) → False
def in_phrase(words: list[str], j: int) -> bool:
    """Whether a word stands in a borrowed term of several words."""
    for place, term in _TERMS_WITH.get(words[j], ()):
        if j >= place and words[j - place : j - place + len(term)] == term:
            return True
    return False
